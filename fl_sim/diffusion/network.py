"""The network that predicts, described by a configuration: a U-Net of diffusers, or one that a factory builds."""

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from fl_sim.diffusion.configuration import ConfigError, cached_by_value, from_config
from fl_sim.diffusion.factory import FACTORY, build_by_factory
from fl_sim.diffusion.lora import LORA, LoRA, adapt
from fl_sim.diffusion.parameters import trainable_parameters

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


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the network that ``config`` describes, with its own initialisation.

    The key ``lora``, which diffusers does not know, holds the fields of LoRA: the network then has adapters.

    Raises:
        ConfigError: if ``_class_name`` is not one of MODEL_CLASSES or diffusers refuses the configuration; with the key
            ``_factory``, as ``build_by_factory``.
    """
    model = build_by_factory(config) if FACTORY in config else _build_of_diffusers(config)
    return adapt(model, LoRA.from_model_config(config[LORA])) if LORA in config else model


def _build_of_diffusers(config: Mapping[str, Any]) -> nn.Module:
    name = config.get("_class_name")
    if name not in MODEL_CLASSES:
        raise ConfigError(f"model._class_name {name!r} is not allowed; allowed: {', '.join(MODEL_CLASSES)}")
    plain = {key: value for key, value in config.items() if key != LORA}
    model: nn.Module = from_config(getattr(diffusers, name), plain, "model")
    return model


@cached_by_value
def outline(config: Mapping[str, Any]) -> nn.Module:
    """The network that ``config`` describes on torch's meta device: names and shapes without numbers.

    That of a factory, whose code may need numbers, is built with them first.

    Equal configurations share one object: do not change it.

    Raises:
        ConfigError: as ``build_model``.
    """
    if FACTORY in config:
        with torch.random.fork_rng(devices=[]):
            return build_model(config).to("meta")
    with torch.device("meta"):
        return build_model(config)


def predict(model: nn.Module, x_t: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
    """The network's output [B,C,H,W] for noisy images ``x_t`` [B,C,H,W] at ``timesteps`` [B].

    ``labels`` int64 [B] are the classes of the images, for a network that takes them (``num_classes``); they come
    third. A network returns its output as it is, or as the attribute ``sample`` of an object, as those of diffusers do.
    """
    output = model(x_t, timesteps) if labels is None else model(x_t, timesteps, labels)
    return output if isinstance(output, Tensor) else output.sample


def num_classes(config: Mapping[str, Any]) -> int | None:
    """How many classes the network of ``config`` distinguishes, its labels being 0..n-1; None where it takes none.

    A factory's network says it as those of diffusers do, by the argument ``num_class_embeds``.
    """
    return config.get("num_class_embeds")


def trainable_names(config: Mapping[str, Any]) -> list[str]:
    """Names of the parameters that the network of ``config`` trains; no memory is allocated for it."""
    return list(trainable_parameters(outline(config)))


def dropout_of(config: Mapping[str, Any]) -> float:
    """The probability with which the network of ``config`` drops an activation in training; 0 where it does not say.

    Of a factory's network it is the argument of that name.
    """
    dropout = config.get("dropout")
    return float(dropout) if isinstance(dropout, int | float) else 0.0


def image_shape(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """The shape [C,H,W] of the images that the network of ``config`` is for; None where it does not say.

    A factory's network does not say.

    Raises:
        ConfigError: if ``sample_size`` is no size.
    """
    size = None if FACTORY in config else config.get("sample_size")
    if size is None:
        return None
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if not whole or len(sides) != 2:
        raise ConfigError(f"model.sample_size = {size!r}; allowed: the side of a square in pixels, or [height, width]")
    return in_channels(config), sides[0], sides[1]


def in_channels(config: Mapping[str, Any]) -> int:
    """The channels of the images that the network of ``config`` takes in; diffusers' default is 3."""
    return config.get("in_channels", 3)
