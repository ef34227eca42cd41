"""The U-Nets of diffusers, described by the configuration that diffusers writes."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import diffusers
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from fl_sim.network.configuration import from_config

MODEL_CLASSES = ("UNet2DModel",)
"""The classes of diffusers that a configuration may name in ``_class_name``."""


Level = Annotated[int, Field(ge=1, le=65_536)]
"""Channels of a level of the network."""
Block = Annotated[str, Field(max_length=64)]
"""A block's type."""


class UNetLimits(BaseModel):
    """How large a network a configuration may describe: what takes no memory, as on the meta device, takes time."""

    model_config = ConfigDict(strict=True)

    block_out_channels: list[Level] = Field([1], min_length=1, max_length=16)
    down_block_types: list[Block] = Field([], max_length=16)
    up_block_types: list[Block] = Field([], max_length=16)
    layers_per_block: int = Field(1, ge=1, le=64)
    num_class_embeds: int | None = Field(None, ge=1, le=1_000_000)
    num_train_timesteps: int | None = Field(None, ge=1, le=1_000_000)


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
    model: nn.Module = from_config(getattr(diffusers, config["_class_name"]), _with_lists(config), "model", UNetLimits)
    return model


def _with_lists(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as JSON has it, in which there are no tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
