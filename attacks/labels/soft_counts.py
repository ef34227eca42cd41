"""Counts from the mean feature: c_k = N (p_k - db_k), with the mean probabilities p taken at the mean feature.

LLG (arXiv 2105.09369) likewise subtracts what the other samples add to a row. Here no images are needed for that. Where
all samples have about the same probabilities, row k of the gradient is about db_k times the mean feature: least squares
over the rows give it, and the weights give p.

The counts come out as real numbers. Their distances from whole numbers tell how good they are.
"""

import math

from scipy import stats
from torch import Tensor

from attacks.labels.last_layer import LastLayer

LARGEST_MARGIN = 30.0
"""Standard deviations beyond which the tails of distributions leave float64."""
SMALLEST_SENSITIVITY = 1e-3
"""Least p (1 - p) of a class, relative to the largest: below, rounding outweighs what it would tell."""


def soft_counts(layer: LastLayer) -> tuple[Tensor, Tensor]:
    """The estimated counts, float64 [K], and dp_k/dz_k = p_k (1 - p_k), [K]: how much a logit's error moves each."""
    bias = layer.bias_gradient
    mean_feature = (layer.gradient * bias[:, None]).sum(dim=0) / bias.square().sum()
    probabilities = (layer.weights @ mean_feature).softmax(dim=0)
    return layer.samples * (probabilities - bias), probabilities * (1 - probabilities)


def round_counts(counts: Tensor, sensitivity: Tensor) -> tuple[Tensor, float]:
    """The whole numbers int64 [K] next to ``counts``, and the margin by which they are the right ones.

    An error of the logits, the same for all classes, moves count k by ``sensitivity`` k. Its size is estimated from the
    K distances to whole numbers; so an error of 1/2, for the class that it moves most, is a value of Student's t with
    K - 1 degrees of freedom. The margin is the normal deviation of the same probability.
    """
    whole = counts.round()
    relative = sensitivity / sensitivity.max()
    errors = (counts - whole) / relative.clamp_min(SMALLEST_SENSITIVITY)
    size = float(errors.square().mean().sqrt())
    chance = float(stats.t.sf(0.5 / size, len(counts) - 1)) if size > 0 else 0.0
    margin = float(stats.norm.isf(chance)) if chance > 0 else math.inf
    return whole.long(), min(margin, LARGEST_MARGIN)
