"""One timestep, read off the signs of a gradient.

For one sample the gradient of a linear layer is s x(t)^T, and its signs are sign(s) sign(x(t))^T. The input signs of
all time layers together differ for nearly all timesteps.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.timesteps.subset_search import Verdict
from attacks.timesteps.time_layers import TimeLayer

UNSURE_SIGN = 1e-5
"""Inputs smaller than so many times their layer's mean magnitude have a sign that rounding may turn."""


def judge_signs(layers: Sequence[TimeLayer]) -> Verdict:
    """The candidate with the fewest contradicted signs, and its lead in standard deviations.

    McNemar's test against every rival: the lead in contradictions over the square root of the number of entries for
    which the two expect different signs. Without noise the right candidate has no contradiction. Equal signs: margin 0.
    """
    expected = [_expected_signs(layer.inputs) for layer in layers]
    contradictions = torch.stack(list(map(_contradictions, layers, expected))).sum(dim=0)
    best = int(contradictions.argmin())
    disputed = torch.stack([_disputed(*pair, best) for pair in zip(layers, expected, strict=True)]).sum(dim=0)
    margins = (contradictions - contradictions[best]) / disputed.clamp_min(1).sqrt()
    margins[best] = math.inf
    return Verdict([best], float(margins.min()))


def _expected_signs(inputs: Tensor) -> Tensor:
    unsure = inputs.abs() < UNSURE_SIGN * inputs.abs().mean()
    return torch.where(unsure, 0.0, inputs.sign())


def _contradictions(layer: TimeLayer, expected: Tensor) -> Tensor:
    """Entries whose sign is not sign(s_r) sign(x_d) for the best signs of s, per candidate [C].

    An input that is exactly 0 leaves a 0. A sign seen there counts half, as much as a coin loses against any candidate.
    """
    observed = layer.gradient.sign()
    agreement, compared = observed @ expected.T, observed.abs() @ expected.abs().T
    impossible = observed.abs() @ (layer.inputs == 0).double().T
    return ((compared - agreement.abs() + impossible) / 2).sum(dim=0)


def _disputed(layer: TimeLayer, expected: Tensor, best: int) -> Tensor:
    """Entries for which each candidate expects another sign than ``best``, its overall sign being free, [C]."""
    differing = torch.minimum((expected != expected[best]).sum(1), (expected != -expected[best]).sum(1))
    return differing * layer.gradient.any(dim=1).sum()
