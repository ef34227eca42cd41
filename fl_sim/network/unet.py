"""The U-Nets of diffusers, described by the configuration that diffusers writes."""

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
from torch import nn

from fl_sim.network.configuration import from_config

MODEL_CLASSES = ("UNet2DModel",)
"""The classes of diffusers that a configuration may name in ``_class_name``."""


def unet_config(
    image_size: int | Sequence[int],
    channels: int = 3,
    block_out_channels: tuple[int, ...] = (32, 64),
    layers_per_block: int = 1,
    norm_num_groups: int = 8,
    attention: bool = False,
) -> dict[str, Any]:
    """Configuration of a small ``diffusers.UNet2DModel`` in the form that captures and checkpoints store.

    ``image_size`` is the side of a square, or [height, width]. The time embedding is as wide as the first block, as in
    diffusers; attention, if any, sits in the innermost blocks.
    """
    depth = len(block_out_channels)
    inner = "Attn" if attention else ""
    return {
        "_class_name": "UNet2DModel",
        "sample_size": image_size if isinstance(image_size, int) else list(image_size),
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(block_out_channels),
        "layers_per_block": layers_per_block,
        "norm_num_groups": norm_num_groups,
        "down_block_types": ["DownBlock2D"] * (depth - 1) + [f"{inner}DownBlock2D"],
        "up_block_types": [f"{inner}UpBlock2D"] + ["UpBlock2D"] * (depth - 1),
        "add_attention": attention,
    }


def build_unet(config: Mapping[str, Any]) -> nn.Module:
    """Build the network of diffusers that ``_class_name``, one of MODEL_CLASSES, names; the other keys are diffusers'.

    Raises:
        ConfigError: if diffusers refuses the configuration.
    """
    model: nn.Module = from_config(getattr(diffusers, config["_class_name"]), config, "model")
    return model
