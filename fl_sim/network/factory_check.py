"""Whether clients can train the network of a factory, and a server can attack it, found out by running it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fl_sim.errors import explain
from fl_sim.network.configuration import ConfigError
from fl_sim.network.factory import FACTORY
from fl_sim.network.network import build_model
from fl_sim.network.parameters import trainable_parameters
from fl_sim.network.training_mode import set_training_mode


class Trial(NamedTuple):
    """What a network is tried on: two images, and what belongs to them.

    Attributes:
        predict: the network's output for those of the two that a slice chooses.
        described: the inputs' shape and values, for a message.
        shape: of the output for both.
        allowed: that shape in words.
    """

    predict: Callable[[nn.Module, slice], Any]
    described: str
    shape: tuple[int, ...]
    allowed: str


BOTH, FIRST = slice(None), slice(1)
RTOL, ATOL = 1e-3, 1e-5
"""Two outputs that differ by no more are the same."""


def check_factory(model: Mapping[str, Any], trial: Trial) -> None:
    """Try the network that a factory builds.

    Raises:
        ConfigError: if the factory does not build, or the network cannot be trained so; the line says why.
    """
    with torch.random.fork_rng(devices=[]):  # building and dropout draw from torch's global generator
        reason = _why_unfit_for_training(model, trial)
    if reason is not None:
        raise ConfigError(f"the network of factory {model[FACTORY]!r} {reason}")


def _why_unfit_for_training(model: Mapping[str, Any], trial: Trial) -> str | None:
    network = _build(model, seed=0)
    return (
        _why_not_storable(dict(network.named_parameters()))
        or _why_training_fails(network, trial)
        or _why_not_storable(network.state_dict())
        or _why_state_is_not_all(network, _build(model, seed=0), _build(model, seed=1), trial)
        or _why_samples_are_coupled(network, trial)
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


def _why_training_fails(network: nn.Module, trial: Trial) -> str | None:
    """The reason why a training step fails, or leaves something behind beside the gradient."""
    parameters = trainable_parameters(network)
    if not parameters:
        return "has no parameters that receive gradients; allowed: one at least"
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        set_training_mode(network)
        prediction = trial.predict(network, BOTH)
    except Exception as error:  # the network may raise anything
        return f"fails on {trial.described}: {explain(error)}"
    if not isinstance(prediction, Tensor) or prediction.shape != trial.shape:
        shape = list(prediction.shape) if isinstance(prediction, Tensor) else type(prediction).__name__
        return f"predicts {shape} for {trial.described}; allowed: {trial.allowed}"
    if not prediction.isfinite().all():
        return f"predicts NaN or infinite values for {trial.described}"
    for name, buffer in network.named_buffers():
        if name not in buffers or not torch.equal(buffer, buffers[name]):
            return (
                f"changes its buffer {name} in training, which clients do not send; allowed: buffers that stay, as do "
                "those of torch's batch normalisation, which is kept in evaluation mode"
            )
    try:
        gradients = torch.autograd.grad(prediction.sum(), list(parameters.values()), allow_unused=True)
    except Exception as error:
        return f"has no gradient: {explain(error)}"
    unused = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    return f"does not use its parameter {unused[0]}; allowed: requires_grad_(False) for it" if unused else None


def _why_state_is_not_all(network: nn.Module, again: nn.Module, other: nn.Module, trial: Trial) -> str | None:
    """Why the state dict does not determine what the network predicts; ``other`` was built under another seed."""
    state, repeated = network.state_dict(), again.state_dict()
    for name, value in state.items():
        if name not in repeated or not torch.equal(value, repeated[name]):
            return f"differs in {name} when it is built again; allowed: random numbers from torch's generator alone"
    try:
        other.load_state_dict(state)
        with torch.no_grad():
            one, two = (trial.predict(each.eval(), BOTH) for each in (network, other))
    except Exception as error:
        return f"cannot be built anew with its own state_dict(): {explain(error)}"
    if not torch.allclose(one, two, rtol=RTOL, atol=ATOL):
        return "predicts something else after its state_dict() is loaded into another one of its kind"
    return None


def _why_samples_are_coupled(network: nn.Module, trial: Trial) -> str | None:
    """Why a batch's gradient is not the mean of its images' own."""
    with torch.no_grad():
        together, alone = trial.predict(network.eval(), BOTH)[FIRST], trial.predict(network, FIRST)
    if torch.allclose(together, alone, rtol=RTOL, atol=ATOL):
        return None
    return (
        "predicts something else for an image when others are beside it, as batch normalisation without running "
        "statistics does: what an update says of one image would depend on the others; allowed: GroupNorm, or "
        "BatchNorm with running statistics, which is kept in evaluation mode"
    )
