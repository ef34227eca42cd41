"""The network, described by a configuration: a U-Net of diffusers, a classifier, or one that a factory builds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fl_sim.errors import nearest
from fl_sim.network.classifiers import CLASSIFIERS, build_classifier
from fl_sim.network.configuration import ConfigError, cached_by_value
from fl_sim.network.factory import FACTORY, build_by_factory
from fl_sim.network.lora import LORA, LoRA, adapt
from fl_sim.network.parameters import count_parameters, trainable_parameters
from fl_sim.network.unet import MODEL_CLASSES, build_unet

MOST_PARAMETERS = 2**32
"""Of a network that is built: 16 GiB of float32. A configuration that asks for more is a mistake or an attack."""


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the network that ``config`` describes, with its own initialisation.

    ``_class_name`` is one of MODEL_CLASSES or CLASSIFIERS, or ``_factory`` names what builds the network. The key
    ``lora`` holds the fields of LoRA: the network then has adapters.

    Raises:
        ConfigError: if the name is neither's, the network cannot be built with the other keys, or it would have more
            than MOST_PARAMETERS.
    """
    if FACTORY not in config:
        outline(config)  # before any memory is taken
    return _build(config)


def _build(config: Mapping[str, Any]) -> nn.Module:
    model = build_by_factory(config) if FACTORY in config else _build_by_class(config)
    return adapt(model, LoRA.from_model_config(config[LORA])) if LORA in config else model


def _build_by_class(config: Mapping[str, Any]) -> nn.Module:
    name = config.get("_class_name")
    plain = {key: value for key, value in config.items() if key != LORA}
    if name in MODEL_CLASSES:
        return build_unet(plain)
    if name in CLASSIFIERS:
        return build_classifier(plain)
    known = (*MODEL_CLASSES, *CLASSIFIERS)
    raise ConfigError(
        f"model._class_name {name!r} is not allowed; allowed: {', '.join(known)}{nearest(str(name), known)}"
    )


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
        network = _build(config)
    if (parameters := count_parameters(network.parameters())) > MOST_PARAMETERS:
        raise ConfigError(f"the network has {parameters:.3g} parameters; allowed: at most {MOST_PARAMETERS:.3g}")
    return network


def num_classes(config: Mapping[str, Any]) -> int | None:
    """How many classes the network of ``config`` is told, its labels being 0..n-1; None where it takes no labels.

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
        ConfigError: if ``sample_size``, or a classifier's ``image_size``, is no size.
    """
    key = "image_size" if config.get("_class_name") in CLASSIFIERS else "sample_size"
    size = None if FACTORY in config else config.get(key)
    if size is None:
        return None
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if not whole or len(sides) != 2:
        raise ConfigError(f"model.{key} = {size!r}; allowed: the side of a square in pixels, or [height, width]")
    return in_channels(config), sides[0], sides[1]


def in_channels(config: Mapping[str, Any]) -> int:
    """The channels of the images that the network of ``config`` takes in; the default is 3."""
    return config.get("in_channels", 3)
