"""Whether a network can be trained on images of a shape. One of diffusers is run on meta tensors."""

from collections.abc import Mapping
from typing import Any

import torch

from fl_sim.diffusion.network import predict
from fl_sim.diffusion.noise_schedule import num_train_timesteps
from fl_sim.errors import message
from fl_sim.network.configuration import ConfigError, cached_by_value
from fl_sim.network.factory import FACTORY
from fl_sim.network.factory_check import Trial, check_factory
from fl_sim.network.network import num_classes, outline
from fl_sim.network.parameters import trainable_parameters
from fl_sim.network.unet import MODEL_CLASSES


@cached_by_value
def check_network(model: Mapping[str, Any], scheduler: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
    """Check that a network can be trained on images [C,H,W] with a noise schedule, by a pass on torch's meta device.

    A factory's network is really run (``check_factory``): its code may need numbers, and may do anything with them.

    Raises:
        ConfigError: if either cannot be built, or the network cannot be trained so; the line says why.
    """
    timesteps = num_train_timesteps(scheduler)
    _check_classes(model)
    if FACTORY in model:
        check_factory(model, _trial(model, timesteps, image_shape))
        return
    network: Any = outline(model)
    if model["_class_name"] not in MODEL_CLASSES:
        raise ConfigError(f"a {model['_class_name']} does not denoise; allowed: {', '.join(MODEL_CLASSES)}")
    _check_inputs(network, timesteps, image_shape[0])
    reason = _why_training_fails(network, image_shape, labelled=num_classes(model) is not None)
    if reason is None:
        return
    levels, (height, width) = len(network.config.block_out_channels), image_shape[1:]
    multiple = 2 ** (levels - 1)
    if height % multiple or width % multiple:
        raise ConfigError(
            f"images of {height}x{width} pixels do not go through a network of {levels} levels; "
            f"allowed: sides that are multiples of {multiple}, or fewer levels (block_out_channels)"
        )
    raise ConfigError(f"the network cannot be trained on images of shape {list(image_shape)}: {reason}")


def _trial(model: Mapping[str, Any], num_train_timesteps: int, image_shape: tuple[int, int, int]) -> Trial:
    """Two random images at the first and the last timestep, with the first and the last label if it takes labels."""
    x_t = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
    timesteps, classes = torch.tensor([0, num_train_timesteps - 1]), num_classes(model)
    labels = None if classes is None else torch.tensor([0, classes - 1])
    labelled = "" if labels is None else f" with labels {labels.tolist()}"
    return Trial(
        lambda network, chosen: predict(
            network, x_t[chosen], timesteps[chosen], None if labels is None else labels[chosen]
        ),
        f"images of shape {list(x_t.shape)} at timesteps {timesteps.tolist()}{labelled}",
        tuple(x_t.shape),
        "the images' own shape",
    )


def _check_classes(model: Mapping[str, Any]) -> None:
    classes = num_classes(model)
    if classes is not None and (not isinstance(classes, int) or isinstance(classes, bool) or classes < 1):
        raise ConfigError(f"num_class_embeds = {classes!r}; allowed: the number of classes, from 1")


def _check_inputs(network: Any, timesteps: int, channels: int) -> None:
    facts = network.config
    if facts.class_embed_type is not None:
        raise ConfigError(
            f"the network embeds class labels by class_embed_type = {facts.class_embed_type!r}, which neither clients "
            "nor attacks can give; allowed: a table of labels (num_class_embeds)"
        )
    if facts.out_channels == 2 * facts.in_channels:
        raise ConfigError(
            f"the network predicts a variance beside the noise (out_channels = {facts.out_channels}, in_channels = "
            f"{facts.in_channels}), which the loss does not train; allowed: out_channels = {facts.in_channels}"
        )
    if not facts.in_channels == facts.out_channels == channels:
        raise ConfigError(
            f"the network takes images of {facts.in_channels} channels and predicts {facts.out_channels}, the images "
            f"have {channels}; allowed: in_channels = out_channels = {channels}"
        )
    embedded = getattr(network.time_proj, "num_embeddings", timesteps)
    if embedded < timesteps:
        raise ConfigError(
            f"the network's learned embedding knows {embedded} timesteps, the noise schedule has {timesteps}; "
            f"allowed: model.num_train_timesteps = {timesteps}"
        )


def _why_training_fails(network: Any, image_shape: tuple[int, int, int], labelled: bool) -> str | None:
    try:
        x_t = torch.empty(2, *image_shape, device="meta")
        zeros = torch.zeros(2, dtype=torch.int64, device="meta")
        prediction = predict(network, x_t, zeros, zeros if labelled else None)
        torch.autograd.grad(prediction.sum(), list(trainable_parameters(network).values()))
    except Exception as error:  # the network may raise anything
        return message(error)
    return f"it predicts {list(prediction.shape[1:])}" if prediction.shape != x_t.shape else None
