"""Linear layers whose input is a known function of the timestep alone, with the estimates of their gradients.

The image never enters a U-Net's time MLP. So the server, who knows the weights, can compute the inputs x(t) of
``time_embedding.linear_1`` and ``linear_2`` and of every residual block's ``time_emb_proj`` for all timesteps. Their
weight gradients are sums over the samples,

    dW = sum_i s_i x(t_i)^T.

A bias is a last input that is always 1. A learned embedding table is a linear layer of one-hot inputs. The time
projections share their input and are stacked to one tall layer; in a class-conditional network it depends on timestep
and label. In a layer with a low-rank adapter W + c B A the
gradient of A has the inputs x(t), and that of B the inputs A x(t).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.inversion.problem import InversionProblem

_EMBEDDING = "time_proj"
_FIRST, _SECOND = "time_embedding.linear_1", "time_embedding.linear_2"
_PROJECTION = "time_emb_proj"


@dataclass(frozen=True)
class TimeLayer:
    """Inputs x(t) of the C candidate timesteps, float64 [C,D], and the gradient sum_i s_i x(t_i)^T, float64 [R,D].

    ``std`` [R,D] is the standard deviation of the gradient's entries, infinite where nothing is known.
    """

    inputs: Tensor
    gradient: Tensor
    std: Tensor

    def rows(self, chosen: Tensor) -> "TimeLayer":
        """The layer with only the chosen outputs, bool [R]."""
        return TimeLayer(self.inputs, self.gradient[chosen], self.std[chosen])


def time_projection_inputs(model: Any, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
    """What ``model`` feeds every ``time_emb_proj`` at ``timesteps`` and ``labels`` int64 [n]; float64 [n,D], CPU.

    It is silu(temb(t)), or silu(temb(t) + E_c) in a network that takes labels.
    """
    return _inputs(model, timesteps, labels)[-1]


def candidate_timesteps(problem: InversionProblem) -> Tensor:
    """The timesteps that the network can be trained on, int64 [C]: all at which its embedding is finite.

    A Fourier embedding takes the logarithm of t, so that t = 0 would have left NaN in the update.
    """
    timesteps = torch.arange(problem.scheduler.config.num_train_timesteps)
    return timesteps[_inputs(problem.model, timesteps, None)[0].isfinite().all(dim=1)]


def time_layers(
    problem: InversionProblem, candidates: Tensor, labels: Tensor | None = None, *, at_weights_sent: bool = False
) -> list[TimeLayer]:
    """The layers whose gradient was observed and whose inputs are known, for candidate timesteps int64 [C].

    In a network that takes labels, the time projections count only if the candidates have ``labels`` int64 [C]. Local
    steps move the weights. From the second step on a layer's input is known only if no layer before it is trained:
    always that of ``linear_1``, unless the embedding is learned. With ``at_weights_sent`` all layers are returned, with
    the inputs that they have there.
    """
    moves = problem.circumstances.local_steps > 1 and not at_weights_sent
    layers = []
    for names, inputs in _chain(problem.model, candidates, labels):
        observed = [name for name in names if f"{name}.weight" in problem.gradient]
        if observed:
            layers.append(_layer(problem, observed, inputs))
        layers += [layer for name in names for layer in _adapter(problem, name, inputs, moves)]
        if moves and any(name.startswith(tuple(names)) for name in problem.gradient):
            break
    return layers


def _adapter(problem: InversionProblem, name: str, inputs: Tensor, moves: bool) -> Iterator[TimeLayer]:
    """The layers of an adapter's A and B; once A moves, the inputs of B are not known."""
    first, second = (f"{name}.{part}.default.weight" for part in ("lora_A", "lora_B"))
    if first in problem.gradient and problem.gradient[first].any():  # it is zero as long as B is
        yield TimeLayer(inputs, problem.gradient[first].double().cpu(), problem.std[first].double().cpu())
    if second in problem.gradient and not moves:
        reduced = inputs @ problem.model.get_parameter(first).detach().double().cpu().T
        yield TimeLayer(reduced, problem.gradient[second].double().cpu(), problem.std[second].double().cpu())


def _chain(model: Any, timesteps: Tensor, labels: Tensor | None) -> Iterator[tuple[list[str], Tensor]]:
    """Names of modules that share an input, with that input; each depends on the modules before it only."""
    embedding, hidden, projected = _inputs(model, timesteps, labels)
    if isinstance(model.time_proj, nn.Embedding):
        yield [_EMBEDDING], nn.functional.one_hot(timesteps, model.time_proj.num_embeddings).double()
    yield [_FIRST], embedding
    yield [_SECOND], hidden
    if labels is not None or model.class_embedding is None:
        yield [name for name, _ in model.named_modules() if name.endswith(_PROJECTION)], projected


def _inputs(model: Any, timesteps: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of ``linear_1``, ``linear_2`` and the time projections, by the model's own arithmetic."""
    device = next(model.parameters()).device
    with torch.no_grad():
        embedding = model.time_proj(timesteps.to(device))
        hidden = model.time_embedding.act(model.time_embedding.linear_1(embedding))
        embedded = model.time_embedding.linear_2(hidden)
        if labels is not None:
            embedded = embedded + model.class_embedding(labels.to(device))
        projected = _nonlinearity(model)(embedded)
    return embedding.double().cpu(), hidden.double().cpu(), projected.double().cpu()


def _nonlinearity(model: Any) -> nn.Module:
    """What residual blocks apply to the time embedding before they project it."""
    return next(module.nonlinearity for module in model.modules() if hasattr(module, _PROJECTION))


def _layer(problem: InversionProblem, names: Sequence[str], inputs: Tensor) -> TimeLayer:
    biased = all(f"{name}.bias" in problem.gradient for name in names)
    if biased:
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)

    def stack(entries: dict[str, Tensor]) -> Tensor:
        weights = torch.cat([_by_input(name, entries[f"{name}.weight"]) for name in names])
        biases = [torch.cat([entries[f"{name}.bias"] for name in names])[:, None]] if biased else []
        return torch.cat([weights, *biases], dim=1).double().cpu()

    return TimeLayer(inputs, stack(problem.gradient), stack(problem.std))


def _by_input(name: str, weight: Tensor) -> Tensor:
    """The weight of a linear layer [R,D]; an embedding table's rows are inputs, not outputs."""
    return weight.T if name == _EMBEDDING else weight
