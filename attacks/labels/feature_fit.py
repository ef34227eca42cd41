"""Whether a hypothesis about the labels explains the last layer's gradient, with features that are fitted.

For the right labels Y there are features h_i with

    (1/N) sum_i (softmax(W a_i) - y_i) a_i^T = G,    a_i = (h_i, 1),

G and W with the bias as last column. If N < K, G has rank N, and its row space holds every a_i (as that of any linear
layer holds its inputs: SPEAR, arXiv 2403.03945). So a_i = r_i Z with an orthonormal basis Z [N,F+1] of it. That leaves
N^2 unknowns for N K independent equations: wrong labels have no solution. Levenberg-Marquardt finds the right ones'.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from attacks.labels.last_layer import FLOAT32_ERROR, LastLayer

MOST_SAMPLES = 16
"""Images up to which features are fitted; one step takes N^6 multiplications."""
HYPOTHESES = 6
"""So many are tried, the likeliest first."""
MOST_WAYS = 50_000
"""Ways to choose the labels that are not proven, up to which all are ranked."""
STARTS = 2
"""Fits of every hypothesis, each from features of other images."""
STEPS = 60
"""Most steps of a fit."""
LARGEST_DAMPING = 1e9
"""Damping, relative to the equations' own curvature, at which a fit is given up."""
FITS_BELOW = 50.0
"""Root mean square of the remainder, in standard deviations, below which a hypothesis explains the gradient. Of exact
gradients right ones came below 12 where the fit converged, and wrong ones stayed above 4,000."""
CLEAR_OF_NOISE = 5.0
"""A sample shows where the gradient's N-th singular value exceeds so many times the largest one of the noise."""


@dataclass(frozen=True)
class FeatureEquations:
    """The equations above in coordinates of the row space, in standard deviations.

    Attributes:
        gradient: G Z^T, [K,N].
        weights: W Z^T, [K,N].
        ones: the last column of Z^T, [N]; r_i times it is 1.
        starts: coordinates of features of the attacker's own images, [M,N].
        deviation: standard deviation of the entries of ``gradient``.
    """

    gradient: Tensor
    weights: Tensor
    ones: Tensor
    starts: Tensor
    deviation: float

    def remainder(self, rows: Tensor, labels: Tensor) -> Tensor:
        """What ``rows`` [N,N] and ``labels`` int64 [N] leave of all equations, flat [K N + N]."""
        differences = self._differences(rows, labels)
        left = differences.T @ rows / len(rows) - self.gradient
        return torch.cat([left.reshape(-1), self._ones_weight * (rows @ self.ones - 1)]) / self.deviation

    def jacobian(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Derivative of ``remainder`` for the rows, [K N + N, N^2]."""
        samples, unit = len(rows), torch.eye(len(rows)).to(rows)
        probabilities = (rows @ self.weights.T).softmax(dim=1)
        slopes = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]
        of_probabilities = torch.einsum("ikd,ij->kjid", slopes @ self.weights, rows)
        of_rows = torch.einsum("ik,jd->kjid", self._differences(rows, labels), unit)
        of_ones = self._ones_weight * torch.einsum("ni,d->nid", unit, self.ones)
        flat = ((of_probabilities + of_rows) / samples).reshape(-1, samples**2)
        return torch.cat([flat, of_ones.reshape(samples, -1)]) / self.deviation

    def exchanges(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Changes of ``remainder`` when one sample's label is exchanged for another, as columns [K N + N, N (K-1)]."""
        classes = torch.eye(len(self.weights)).to(rows)
        changes = [
            torch.outer(classes[label] - classes[other], row).reshape(-1)
            for label, row in zip(labels.tolist(), rows, strict=True)
            for other in range(len(classes))
            if other != label
        ]
        left = torch.stack(changes, dim=1) / (len(rows) * self.deviation)
        return torch.cat([left, left.new_zeros(len(rows), left.shape[1])])

    @property
    def _ones_weight(self) -> float:
        """The last feature is exactly 1, known as well as all entries together."""
        return float(self.gradient.norm())

    def _differences(self, rows: Tensor, labels: Tensor) -> Tensor:
        """p_i - y_i, [N,K]."""
        return (rows @ self.weights.T).softmax(dim=1) - one_hot(labels, len(self.weights))


def feature_equations(layer: LastLayer) -> FeatureEquations | None:
    """The equations for the layer's gradient; None where there are too few, or noise hides a sample."""
    samples, classes = layer.samples, layer.num_classes
    if not (layer.complete and layer.counts and layer.one_point and samples < min(classes, MOST_SAMPLES + 1)):
        return None
    _, values, rows = torch.linalg.svd(layer.gradient, full_matrices=False)
    basis = rows[:samples].T
    feature_size = float(layer.features.square().mean().sqrt())
    deviation = math.hypot(float(layer.std.square().mean().sqrt()), FLOAT32_ERROR * feature_size / math.sqrt(samples))
    noise = deviation * (math.sqrt(classes) + math.sqrt(len(rows.T)))
    if len(values) < samples or values[samples - 1] < CLEAR_OF_NOISE * noise:
        return None
    return FeatureEquations(layer.gradient @ basis, layer.weights @ basis, basis[-1], layer.features @ basis, deviation)


def fit_labels(layer: LastLayer, least: Tensor, likely: Tensor) -> tuple[Tensor, float] | None:
    """The counts int64 [K] that explain the gradient, and by how many standard deviations the best rival does not.

    Rivals have one label exchanged; their features follow to first order. None where no hypothesis was found to fit.

    Args:
        layer: the last layer.
        least: proven least counts, int64 [K].
        likely: estimated counts, float [K]; hypotheses near them are tried first.
    """
    equations = feature_equations(layer)
    if equations is None:
        return None
    for labels in hypotheses(least, likely, layer.samples):
        for start in range(STARTS):
            rows = equations.starts[start * layer.samples :][: layer.samples]
            rows, misfit = fit_rows(equations, rows, labels)
            if misfit < FITS_BELOW:
                return labels.bincount(minlength=layer.num_classes), _margin(equations, rows, labels, misfit)
    return None


def hypotheses(least: Tensor, likely: Tensor, samples: int) -> Iterator[Tensor]:
    """Labels int64 [N] of up to HYPOTHESES multisets with at least the counts ``least``, those near ``likely`` first.

    >>> [labels.tolist() for labels in hypotheses(torch.tensor([1, 0]), torch.tensor([1.2, 0.8]), 2)]
    [[0, 1], [0, 0]]
    """
    classes, free = len(least), samples - int(least.sum())
    if math.comb(classes + free - 1, free) > MOST_WAYS:
        return
    counts = torch.stack(
        [
            least + torch.tensor(way, dtype=torch.int64).bincount(minlength=classes)
            for way in combinations_with_replacement(range(classes), free)
        ]
    )
    order = (counts - likely).square().sum(dim=1).argsort(stable=True)
    for count in counts[order[:HYPOTHESES]]:
        yield torch.arange(classes).repeat_interleave(count)


def fit_rows(equations: FeatureEquations, rows: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Levenberg-Marquardt from ``rows`` [N,N]: the best rows, and the root mean square of their remainder."""
    damping = 1e-3
    remainder = equations.remainder(rows, labels)
    for _ in range(STEPS):
        jacobian = equations.jacobian(rows, labels)
        squares, slope = jacobian.T @ jacobian, jacobian.T @ remainder
        before = float(remainder @ remainder)
        while damping < LARGEST_DAMPING:
            damped = squares + damping * squares.diagonal().diag()
            step, failed = torch.linalg.solve_ex(damped, slope)
            moved = rows - step.view_as(rows)
            left = equations.remainder(moved, labels)
            if not failed and float(left @ left) < before:
                break
            damping *= 4
        else:
            break
        rows, remainder, damping = moved, left, max(damping / 10, 1e-12)
        if float(left @ left) > (1 - 1e-4) * before:
            break
    independent = len(rows) * (len(equations.weights) - len(rows))
    return rows, math.sqrt(float(remainder @ remainder) / independent)


def _margin(equations: FeatureEquations, rows: Tensor, labels: Tensor, misfit: float) -> float:
    """Least part of an exchange that no change of the rows makes up for, over the misfit if that is above 1."""
    basis, _ = torch.linalg.qr(equations.jacobian(rows, labels))
    exchanges = equations.exchanges(rows, labels)
    apart = exchanges.square().sum(dim=0) - (basis.T @ exchanges).square().sum(dim=0)
    return math.sqrt(max(float(apart.min()), 0.0)) / max(misfit, 1.0)
