"""Whether clients can train the network of a factory, and a server can attack it, found out by running it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fl_sim.diffusion.network import predict
from fl_sim.errors import explain
from fl_sim.network.configuration import ConfigError
from fl_sim.network.factory import FACTORY
from fl_sim.network.network import build_model, num_classes
from fl_sim.network.parameters import trainable_parameters


class Inputs(NamedTuple):
    """What a network is tried with: noisy images [2,C,H,W], timesteps [2], labels int64 [2] where it takes them."""

    x_t: Tensor
    timesteps: Tensor
    labels: Tensor | None

    def described(self) -> str:
        """Their shape and values, for a message."""
        labels = "" if self.labels is None else f" with labels {self.labels.tolist()}"
        return f"images of shape {list(self.x_t.shape)} at timesteps {self.timesteps.tolist()}{labels}"


def check_factory(model: Mapping[str, Any], num_train_timesteps: int, image_shape: tuple[int, int, int]) -> None:
    """Try the network that a factory builds on two random images [C,H,W], at the first and last timesteps and labels.

    Raises:
        ConfigError: if the factory does not build, or the network cannot be trained so; the line says why.
    """
    with torch.random.fork_rng(devices=[]):  # building and dropout draw from torch's global generator
        reason = _why_unfit_for_training(model, num_train_timesteps, image_shape)
    if reason is not None:
        raise ConfigError(f"the network of factory {model[FACTORY]!r} {reason}")


def _why_unfit_for_training(
    model: Mapping[str, Any], num_train_timesteps: int, image_shape: tuple[int, int, int]
) -> str | None:
    network = _build(model, seed=0)
    classes = num_classes(model)
    inputs = Inputs(
        torch.randn(2, *image_shape),
        torch.tensor([0, num_train_timesteps - 1]),
        None if classes is None else torch.tensor([0, classes - 1]),
    )
    return (
        _why_not_storable(dict(network.named_parameters()))
        or _why_training_fails(network, inputs)
        or _why_not_storable(network.state_dict())
        or _why_state_is_not_all(network, _build(model, seed=0), _build(model, seed=1), inputs)
    )


def _build(model: Mapping[str, Any], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(model)


def _why_not_storable(tensors: Mapping[str, Tensor]) -> str | None:
    """The reason why a capture cannot hold tensors of the network."""
    for name, value in tensors.items():
        if value.dtype != torch.float32 or value.device.type != "cpu":
            return (
                f"has {name} of {value.dtype} on {value.device}; allowed: torch.float32 on the CPU, or a buffer with "
                "persistent=False"
            )
    return None


def _why_training_fails(network: nn.Module, inputs: Inputs) -> str | None:
    """The reason why a training step fails, or leaves something behind beside the gradient."""
    parameters = trainable_parameters(network)
    if not parameters:
        return "has no parameters that receive gradients; allowed: one at least"
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        prediction = predict(network.train(), *inputs)
    except Exception as error:  # the network may raise anything
        return f"fails on {inputs.described()}: {explain(error)}"
    x_t = inputs.x_t
    if not isinstance(prediction, Tensor) or prediction.shape != x_t.shape:
        shape = list(prediction.shape) if isinstance(prediction, Tensor) else type(prediction).__name__
        return f"predicts {shape} for images of shape {list(x_t.shape)}; allowed: the images' own shape"
    if not prediction.isfinite().all():
        return f"predicts NaN or infinite values at timesteps {inputs.timesteps.tolist()}"
    for name, buffer in network.named_buffers():
        if name not in buffers or not torch.equal(buffer, buffers[name]):
            return (
                f"changes its buffer {name} in training, as batch normalisation does: clients do not send that; "
                "allowed: buffers that stay, such as GroupNorm in its place"
            )
    try:
        gradients = torch.autograd.grad(prediction.sum(), list(parameters.values()), allow_unused=True)
    except Exception as error:
        return f"has no gradient: {explain(error)}"
    unused = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    return f"does not use its parameter {unused[0]}; allowed: requires_grad_(False) for it" if unused else None


def _why_state_is_not_all(network: nn.Module, again: nn.Module, other: nn.Module, inputs: Inputs) -> str | None:
    """Why the state dict does not determine what the network predicts; ``other`` was built under another seed."""
    state, repeated = network.state_dict(), again.state_dict()
    for name, value in state.items():
        if name not in repeated or not torch.equal(value, repeated[name]):
            return f"differs in {name} when it is built again; allowed: random numbers from torch's generator alone"
    try:
        other.load_state_dict(state)
        with torch.no_grad():
            one, two = (predict(each.eval(), *inputs) for each in (network, other))
    except Exception as error:
        return f"cannot be built anew with its own state_dict(): {explain(error)}"
    if not torch.allclose(one, two, rtol=1e-3, atol=1e-5):
        return "predicts something else after its state_dict() is loaded into another one of its kind"
    return None
