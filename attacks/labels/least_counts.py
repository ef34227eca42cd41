"""How often each label occurs at least: what the signs and sizes of the last layer's gradient prove.

A label that does not occur has p_ik - y_ik = p_ik > 0 for all samples. So its bias gradient is positive, and where
features are never negative (after a ReLU or a sigmoid) the whole row of its weight gradient is: a negative entry proves
that the label occurs (GradInversion, arXiv 2104.07586, looks at each row's least entry). And a label that occurs c
times has c = sum_i p_ik - N db_k > -N db_k.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.labels.last_layer import FLOAT32_ERROR, LastLayer


@dataclass(frozen=True)
class LeastCounts:
    """Least occurrences of every label, int64 [K], and by how many standard deviations each is proven, [K]."""

    counts: Tensor
    margins: Tensor


def least_counts(layer: LastLayer, margin: float) -> LeastCounts:
    """The least occurrences that are proven by at least ``margin`` standard deviations."""
    bias, deviation = layer.bias_gradient, layer.std[:, -1].hypot(torch.tensor(FLOAT32_ERROR).double())
    present = _sign_margins(layer)
    counts = torch.zeros_like(bias)
    if layer.counts:
        counts = (-layer.samples * (bias + margin * deviation)).ceil().clamp_min(0)
    several = torch.where(counts > 1, (-bias - (counts - 1) / layer.samples) / deviation, math.inf)
    counts = torch.where(present >= margin, counts.clamp_min(1), 0.0)
    return LeastCounts(counts.long(), torch.minimum(present, several))


def _sign_margins(layer: LastLayer) -> Tensor:
    """By how many standard deviations the most negative entry of each row is below 0, [K].

    A row's least of many entries may be negative by noise alone, which is deducted.
    """
    ratios = -layer.gradient / layer.std.hypot(FLOAT32_ERROR * layer.gradient.abs()).clamp_min(1e-300)
    if bool((layer.features[:, :-1] < 0).any()):
        return ratios[:, -1]
    return torch.maximum(ratios[:, -1], ratios[:, :-1].amax(dim=1) - math.sqrt(2 * math.log(ratios.numel())))
