"""Linear layers whose input is a known function of timestep and label, with the estimates of their gradients.

The image never enters a U-Net's time MLP, nor the projections of its output in the residual blocks. So the server, who
knows the weights, can compute the inputs x(t) of these layers for all timesteps, or x(t, c) for pairs of timestep and
label where the network takes labels (attacks/timesteps/time_inputs.py). Their weight gradients are sums over the
samples,

    dW = sum_i s_i x(t_i)^T.

A bias is a last input that is always 1. A learned embedding table is a linear layer of one-hot inputs. Layers that
share their input, as the time projections do, are stacked to one tall layer. In a layer with a low-rank adapter
W + c B A the gradient of A has the inputs x(t), and that of B the inputs A x(t).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.inversion.problem import InversionProblem
from attacks.timesteps.time_inputs import KnownInput, time_inputs


@dataclass(frozen=True)
class TimeLayer:
    """Inputs x of the C candidates, float64 [C,D], and the gradient sum_i s_i x_i^T, float64 [R,D].

    ``std`` [R,D] is the standard deviation of the gradient's entries, infinite where nothing is known.
    """

    inputs: Tensor
    gradient: Tensor
    std: Tensor

    def rows(self, chosen: Tensor) -> "TimeLayer":
        """The layer with only the chosen outputs, bool [R]."""
        return TimeLayer(self.inputs, self.gradient[chosen], self.std[chosen])


def candidate_timesteps(problem: InversionProblem) -> Tensor:
    """The timesteps that the network can be trained on, int64 [C]: all at which its time layers' inputs are finite.

    A Fourier embedding takes the logarithm of t, so that t = 0 would have left NaN in the update.
    """
    timesteps = torch.arange(problem.scheduler.config.num_train_timesteps)
    finite = [each.inputs.isfinite().all(dim=1) for each in time_inputs(problem, timesteps)]
    return timesteps[torch.stack(finite).all(dim=0)] if finite else timesteps


def time_layers(problem: InversionProblem, timesteps: Tensor, labels: Tensor | None = None) -> list[TimeLayer]:
    """The layers whose gradient was observed and whose inputs are known, for candidates int64 [C]."""
    return observed_layers(problem, known_inputs(problem, timesteps, labels))


def known_inputs(problem: InversionProblem, timesteps: Tensor, labels: Tensor | None = None) -> list[KnownInput]:
    """The inputs of time layers at ``timesteps`` and ``labels`` int64 [C], as far as the server knows them.

    Without labels these are the inputs that depend on the timestep alone. Local steps move the weights. From the second
    step on an input is known only if no parameter that it depends on is trained.
    """
    moved = problem.gradient if problem.circumstances.local_steps > 1 else ()
    return time_inputs(problem, timesteps, labels, moved)


def observed_layers(problem: InversionProblem, known: Iterable[KnownInput]) -> list[TimeLayer]:
    """The layers with these inputs whose gradient was observed; those that share an input as one."""
    layers = []
    for each in known:
        observed = [name for name in each.layers if f"{name}.weight" in problem.gradient]
        if observed:
            layers.append(_layer(problem, observed, each.inputs))
    return [layer for layer in layers if layer.gradient.any()]  # that of an adapter's A is zero as long as B is


def time_projections(problem: InversionProblem, timesteps: Tensor, labels: Tensor | None = None) -> KnownInput | None:
    """Those of the layers sharing an input that have the most outputs, observed or not, for samples int64 [n].

    In a U-Net these are the projections of the time embedding in the residual blocks. None if there are no time layers.
    """

    def outputs(each: KnownInput) -> int:
        weights = {name: problem.model.get_parameter(f"{name}.weight") for name in each.layers}
        return sum(len(by_output(problem, name, weight)) for name, weight in weights.items())

    return max(time_inputs(problem, timesteps, labels), key=outputs, default=None)


def _layer(problem: InversionProblem, names: Sequence[str], inputs: Tensor) -> TimeLayer:
    biased = all(f"{name}.bias" in problem.gradient for name in names)
    if biased:
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)

    def stack(entries: dict[str, Tensor]) -> Tensor:
        weights = torch.cat([by_output(problem, name, entries[f"{name}.weight"]) for name in names])
        biases = [torch.cat([entries[f"{name}.bias"] for name in names])[:, None]] if biased else []
        return torch.cat([weights, *biases], dim=1).double().cpu()

    return TimeLayer(inputs, stack(problem.gradient), stack(problem.std))


def by_output(problem: InversionProblem, layer: str, weight: Tensor) -> Tensor:
    """The weight of a linear layer [R,D], or something of its shape; an embedding table's rows are inputs."""
    return weight.T if isinstance(problem.model.get_submodule(layer), nn.Embedding) else weight
