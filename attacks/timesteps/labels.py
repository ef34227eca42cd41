"""The labels behind an update, read off the gradient of the class embedding table.

A class-conditional U-Net adds a row of a table to the time embedding: silu(temb(t) + E_c) enters every residual block
of diffusers' networks. The table is found by structure, as are the layers that see the timestep alone, or both
(attacks/timesteps/time_inputs.py). So the table's gradient is a sum over the samples, in the row of each one's label,

    dE_c = sum_{i: c_i = c} s_i,

and is zero in every other row: the labels that occur are plain to see. Which sample has which label is told together
with its timestep: the inputs of the blocks' time projections depend on both, and candidates for these layers are pairs
(t, c), of labels that occur (attacks/timesteps/recovery.py).
"""

import math
from itertools import product

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attacks.inversion.problem import InversionProblem
from attacks.timesteps.conditions import Conditions, HiddenTimestepsError
from attacks.timesteps.time_inputs import label_inputs, time_inputs
from attacks.timesteps.time_layers import TimeLayer, observed_layers


class LabelRules(BaseModel):
    """When a label counts as read off, and how many are tried."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    clear_of_noise: float = Field(
        5.0, ge=0, description="standard deviations by which a label's row of the table must exceed noise alone"
    )
    candidates_per_sample: int = Field(
        2, ge=1, description="labels that are tried for each sample, those with the largest rows; noise fills all rows"
    )
    most_classes: int = Field(100, ge=1, description="classes up to which all are tried where the table was not sent")
    most_assignments: int = Field(10_000, ge=1, description="ways to deal labels to samples up to which all are ranked")
    most_pairings: int = Field(16, ge=1, description="ways to deal labels to samples that compete, the likeliest")


USUAL = LabelRules()


def label_layers(problem: InversionProblem, labels: Tensor | None) -> list[TimeLayer]:
    """The layers that see the label alone and were sent, for candidates with these labels int64 [C]."""
    return [] if labels is None else observed_layers(problem, label_inputs(problem, labels))


def label_table(problem: InversionProblem) -> TimeLayer | None:
    """The class embedding table as a linear layer with an input for every label; None if it was not sent.

    It is the first of the layers that see the label alone in which every label has a row of its own.
    """
    if problem.num_classes is None:
        return None
    own = torch.eye(problem.num_classes, dtype=torch.float64)
    layers = label_layers(problem, torch.arange(problem.num_classes))
    return next((layer for layer in layers if torch.equal(layer.inputs @ layer.inputs.T, own)), None)


def candidate_labels(problem: InversionProblem, rules: LabelRules = USUAL) -> Tensor | None:
    """The labels that may stand behind the update, int64 [M], ascending; None where the network takes none.

    Raises:
        HiddenTimestepsError: if the table was not sent and the network distinguishes too many classes to try all.
    """
    if problem.num_classes is None:
        return None
    table = label_table(problem)
    if table is None:
        if problem.num_classes > rules.most_classes:
            raise HiddenTimestepsError(
                "labels cannot be read off this update: no table with a row for each was sent, and the network "
                f"distinguishes {problem.num_classes} classes"
            )
        return torch.arange(problem.num_classes)
    sizes = _rows(table, table.gradient).square().sum(1)
    unsent = _rows(table, table.std).isinf().all(1)
    largest = sizes.argsort(descending=True, stable=True)[: rules.candidates_per_sample * problem.samples]
    return largest[(sizes > 0)[largest] | unsent[largest]].sort().values


def recover_labels(problem: InversionProblem, rules: LabelRules = USUAL) -> Tensor:
    """Every label that occurs, int64 [M], ascending, read off the table alone; M <= N.

    Raises:
        HiddenTimestepsError: if the table does not show them, or noise may hide one.
    """
    found = torch.empty(0, dtype=torch.int64)
    noisy = False
    table = label_table(problem)
    if table is not None:
        sizes = _rows(table, table.gradient).square().sum(1)
        variances = _rows(table, table.std).square()
        # An infinite deviation says that the entry is unknown, or beyond what Adam's step tells; its size still counts.
        expected = torch.where(variances.isfinite(), variances, 0.0).sum(1)
        width = variances.shape[1]
        found = (sizes > expected * (1 + rules.clear_of_noise * math.sqrt(2 / width))).nonzero().flatten()
        noisy = problem.noisy
    if not 0 < len(found) <= problem.samples or (noisy and len(found) < problem.samples):
        raise HiddenTimestepsError("labels cannot be read off this update")
    return found


def _rows(table: TimeLayer, values: Tensor) -> Tensor:
    """The rows of every label, [num_classes,R], in values [R,D] of the table."""
    return values.T[table.inputs.argmax(dim=1)]


def pairings(
    problem: InversionProblem, timesteps: Tensor, labels: Tensor, rules: LabelRules = USUAL
) -> list[Conditions]:
    """The likeliest ways to deal all ``labels`` int64 [M] to samples at ``timesteps`` int64 [N]; best first.

    The table and the layers that see the timestep alone say which labels and timesteps there are. The pairs are ranked
    by what they leave of the time projections' gradient. After local steps the projections' inputs are known at the
    weights sent only, which is about right while the weights have hardly moved.

    Raises:
        HiddenTimestepsError: if there are too many ways.
    """
    samples = len(timesteps)
    if len(labels) ** samples > rules.most_assignments:
        raise HiddenTimestepsError(f"{len(labels)} labels can be dealt to {samples} samples in too many ways")
    ways = {
        tuple(sorted(zip(timesteps.tolist(), way, strict=True)))
        for way in product(labels.tolist(), repeat=samples)
        if set(way) == set(labels.tolist())
    }
    dealt = [Conditions(*torch.tensor(way).T) for way in sorted(ways)]
    return sorted(dealt, key=lambda conditions: _remainder(problem, conditions))[: rules.most_pairings]


def _remainder(problem: InversionProblem, conditions: Conditions) -> float:
    """Squared size of what these conditions leave of the time layers' gradients, at the weights sent."""
    left = 0.0
    for layer in observed_layers(problem, time_inputs(problem, *conditions)):
        basis = torch.linalg.qr(layer.inputs.T).Q
        known = torch.where(layer.std.isfinite(), layer.gradient, 0.0)
        left += float((known - known @ basis @ basis.T).square().sum())
    return left
