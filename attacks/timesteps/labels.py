"""The labels behind an update, read off the gradient of the class embedding table.

A class-conditional U-Net of diffusers adds a row of a table to the time embedding: silu(temb(t) + E_c) enters every
residual block. So the table's gradient is a sum over the samples, in the row of each one's label,

    dE_c = sum_{i: c_i = c} s_i,

and is zero in every other row: the labels that occur are plain to see. Which sample has which label is told together
with its timestep: the inputs of the blocks' time projections depend on both, and candidates for these layers are pairs
(t, c), of labels that occur (attacks/timesteps/recovery.py).
"""

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from attacks.inversion.problem import InversionProblem
from attacks.timesteps.conditions import Conditions, HiddenTimestepsError
from attacks.timesteps.time_layers import TimeLayer, time_layers

TABLE = "class_embedding.weight"
"""Name of the class embedding table in diffusers' networks."""
CLEAR_OF_NOISE = 5.0
"""Standard deviations by which a row's squared size must exceed that of noise alone."""
CANDIDATES_PER_SAMPLE = 2
"""So many labels a sample are tried, those with the largest rows; noise fills all rows."""
MOST_LABELS = 100
"""Labels up to which all are tried where the table was not sent."""
MOST_ASSIGNMENTS = 10_000
"""Ways to deal labels to samples up to which all are ranked."""


def label_layers(problem: InversionProblem, labels: Tensor | None) -> Iterator[TimeLayer]:
    """The table as a linear layer of one-hot inputs, for candidates with these labels int64 [C]; none if not sent."""
    if labels is not None and problem.num_classes is not None and TABLE in problem.gradient:
        inputs = torch.nn.functional.one_hot(labels, problem.num_classes).double()
        yield TimeLayer(inputs, *(values[TABLE].T.double().cpu() for values in (problem.gradient, problem.std)))


def candidate_labels(problem: InversionProblem) -> Tensor | None:
    """The labels that may stand behind the update, int64 [M], ascending; None where the network takes none.

    Raises:
        HiddenTimestepsError: if the table was not sent and the network distinguishes too many classes to try all.
    """
    if problem.num_classes is None:
        return None
    if TABLE not in problem.gradient:
        if problem.num_classes > MOST_LABELS:
            raise HiddenTimestepsError(
                f"labels cannot be read off this update: {TABLE} was not sent, and the network distinguishes "
                f"{problem.num_classes} classes"
            )
        return torch.arange(problem.num_classes)
    sizes = problem.gradient[TABLE].double().cpu().square().sum(1)
    unsent = problem.std[TABLE].isinf().all(1).cpu()
    largest = sizes.argsort(descending=True, stable=True)[: CANDIDATES_PER_SAMPLE * problem.samples]
    return largest[(sizes > 0)[largest] | unsent[largest]].sort().values


def recover_labels(problem: InversionProblem) -> Tensor:
    """Every label that occurs, int64 [M], ascending, read off the table alone; M <= N.

    Raises:
        HiddenTimestepsError: if the table does not show them, or noise may hide one.
    """
    found = torch.empty(0, dtype=torch.int64)
    noisy = False
    if TABLE in problem.gradient:
        sizes = problem.gradient[TABLE].double().cpu().square().sum(1)
        variances = problem.std[TABLE].double().cpu().square()
        # An infinite deviation says that the entry is unknown, or beyond what Adam's step tells; its size still counts.
        expected = torch.where(variances.isfinite(), variances, 0.0).sum(1)
        width = problem.gradient[TABLE].shape[1]
        found = (sizes > expected * (1 + CLEAR_OF_NOISE * math.sqrt(2 / width))).nonzero().flatten()
        noisy = problem.noisy
    if not 0 < len(found) <= problem.samples or (noisy and len(found) < problem.samples):
        raise HiddenTimestepsError("labels cannot be read off this update")
    return found


def pairings(problem: InversionProblem, timesteps: Tensor, labels: Tensor, most: int = 16) -> list[Conditions]:
    """The ``most`` likeliest ways to deal all ``labels`` int64 [M] to samples at ``timesteps`` int64 [N]; best first.

    The table and the layers that see the timestep alone say which labels and timesteps there are. The pairs are ranked
    by what they leave of the time projections' gradient. After local steps the projections' inputs are known at the
    weights sent only, which is about right while the weights have hardly moved.

    Raises:
        HiddenTimestepsError: if there are too many ways.
    """
    samples = len(timesteps)
    if len(labels) ** samples > MOST_ASSIGNMENTS:
        raise HiddenTimestepsError(f"{len(labels)} labels can be dealt to {samples} samples in too many ways")
    ways = {
        tuple(sorted(zip(timesteps.tolist(), way, strict=True)))
        for way in product(labels.tolist(), repeat=samples)
        if set(way) == set(labels.tolist())
    }
    dealt = [Conditions(*torch.tensor(way).T) for way in sorted(ways)]
    return sorted(dealt, key=lambda conditions: _remainder(problem, conditions))[:most]


def _remainder(problem: InversionProblem, conditions: Conditions) -> float:
    """Squared size of what these conditions leave of the time layers' gradients, at the weights sent."""
    left = 0.0
    for layer in time_layers(problem, *conditions, at_weights_sent=True):
        basis = torch.linalg.qr(layer.inputs.T).Q
        known = torch.where(layer.std.isfinite(), layer.gradient, 0.0)
        left += float((known - known @ basis @ basis.T).square().sum())
    return left
