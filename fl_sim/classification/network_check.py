"""Whether a network can be trained to classify images of a shape. One of CLASSIFIERS is run on meta tensors."""

from collections.abc import Mapping
from typing import Any

import torch

from fl_sim.classification.network import predict
from fl_sim.errors import message
from fl_sim.network.classifiers import CLASSIFIERS
from fl_sim.network.configuration import ConfigError, cached_by_value
from fl_sim.network.factory import FACTORY
from fl_sim.network.factory_check import Trial, check_factory
from fl_sim.network.network import image_shape as shape_of
from fl_sim.network.network import in_channels, outline
from fl_sim.network.parameters import trainable_parameters


@cached_by_value
def check_network(model: Mapping[str, Any], num_classes: int, image_shape: tuple[int, int, int]) -> None:
    """Check that a network can be trained to classify images [C,H,W], by a pass on torch's meta device.

    A factory's network is really run (``check_factory``).

    Raises:
        ConfigError: if it cannot be built, is no classifier, or does not fit images or classes; the line says why.
    """
    if FACTORY in model:
        images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
        trial = Trial(
            lambda network, chosen: predict(network, images[chosen]),
            f"images of shape {list(images.shape)}",
            (2, num_classes),
            f"a logit for each of {num_classes} classes",
        )
        check_factory(model, trial)
        return
    network = outline(model)
    if model["_class_name"] not in CLASSIFIERS:
        raise ConfigError(f"a {model['_class_name']} is no classifier; allowed: {', '.join(CLASSIFIERS)}")
    _check_facts(model, num_classes, tuple(image_shape))
    try:
        logits = predict(network, torch.empty(2, *image_shape, device="meta"))
        torch.autograd.grad(logits.sum(), list(trainable_parameters(network).values()))
    except Exception as error:  # a layer may raise anything
        shape = list(image_shape)
        raise ConfigError(f"the network cannot be trained on images of shape {shape}: {message(error)}") from error


def _check_facts(model: Mapping[str, Any], num_classes: int, image_shape: tuple[int, ...]) -> None:
    """Compare what the configuration says of images and classes with what there is."""
    if model.get("num_classes") != num_classes:
        raise ConfigError(
            f"the network tells {model.get('num_classes')} classes apart, the images have {num_classes}; allowed: "
            "as many"
        )
    if in_channels(model) != image_shape[0]:
        raise ConfigError(
            f"the network takes images of {in_channels(model)} channels, the images have {image_shape[0]}; allowed: "
            "as many"
        )
    shape = shape_of(model)
    if shape is not None and shape[1:] != image_shape[1:]:
        own, other = ("x".join(map(str, sides)) for sides in (shape[1:], image_shape[1:]))
        raise ConfigError(f"the network takes images of {own} pixels, the images have {other}; allowed: the same")
