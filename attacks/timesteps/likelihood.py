"""The likelihood of sets of timesteps, given the gradients of time layers: least squares in units of the noise.

For a set S the samples' vectors s_i are fitted. What remains outside span{x(t): t in S}, in units of the noise, is
squared and summed. Under Gaussian noise that is -2 ln p(gradient | S) up to a constant, so that layers add up.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.timesteps.time_layers import TimeLayer

FLOAT32_ERROR = 2e-7
"""Relative error of a float32 gradient's entries and of the layers' inputs; below 1.5e-7 was measured."""
CANCELLING_ROW = 0.03
"""Rows smaller than so many times the layer's root mean square are sums of terms that cancel, and have their errors."""
SAME_DIRECTION = 1e-11
"""Squared sine below which an input lies in the span of others."""
NOISE_EXCESS = 1.2
"""The squared remainder passes for noise up to so many times its expectation."""
ROWS_WITH_GAPS = 128
"""Rows used of a layer with missing entries; each needs a projection of its own."""
NEARBY = 3
"""Candidates to either side among which a rival pair is looked for; measured rivals were 1 or 2 away."""
FAINTEST_SAMPLE = 1e-10
"""Squared size of what the faintest sample adds to the others, relative to the whole gradient's."""


@dataclass(frozen=True)
class NoiseScaledLayer:
    """A time layer in units of its noise, as G groups of R rows; the rows of a group share their weights.

    Attributes:
        inputs: [C,D].
        weights: [G,D], one over the standard deviation of each entry; 0 where it is missing.
        values: [G,R,D], gradient times weight.
        rows: number of rows with independent noise, before any were merged.
    """

    inputs: Tensor
    weights: Tensor
    values: Tensor
    rows: int

    def basis(self, members: Sequence[int]) -> Tensor:
        """Orthonormal basis [G,D,N] of the members' weighted inputs; zero for one that the members before it span.

        Pairs of timestep and label share the inputs of a layer that sees only the timestep.
        """
        weighted = (self.inputs[list(members)] * self.weights[:, None, :]).transpose(1, 2)
        basis, triangle = torch.linalg.qr(weighted)
        outside, length = triangle.diagonal(dim1=1, dim2=2).square(), weighted.square().sum(dim=1)
        # QR completes a deficient basis by directions of its own, and takes these from the members that follow.
        return basis if (outside > SAME_DIRECTION * length).all() else _gram_schmidt(weighted)

    def remainder(self, basis: Tensor) -> Tensor:
        """The part of ``values`` outside the basis, [G,R,D]."""
        return self.values - (self.values @ basis) @ basis.transpose(1, 2)

    def gains(self, members: Sequence[int]) -> Tensor:
        """By how much each candidate would lower the squared remainder if it joined the members, [C]."""
        basis = self.basis(members)
        outside = self._outside(basis)
        weighted = self.remainder(basis) * self.weights[:, None, :]
        products = (weighted @ self.inputs.T).square().sum(dim=1)
        return torch.where(outside > 0, products / outside, 0.0).sum(dim=0)

    def spread(self, member: int, others: Sequence[int]) -> Tensor:
        """Rows times the squared sine between the parts of the member and of each candidate outside the others, [C]."""
        basis = self.basis(others)
        outside = self._outside(basis)
        own = self.basis([*others, member])[:, :, -1]
        cosines = ((own * self.weights) @ self.inputs.T).square() / outside
        apart = 1 - torch.where(outside > 0, cosines, 0.0)
        neither = (outside == 0) & ~own.any(dim=1, keepdim=True)
        return self.rows * torch.where(neither, 0.0, apart).mean(dim=0).clamp_min(0)

    def _outside(self, basis: Tensor) -> Tensor:
        """Squared length of each weighted input's part outside the basis, [G,C]; 0 where it is lost in rounding."""
        length = self.weights.square() @ self.inputs.T.square()
        inside = ((basis * self.weights[:, :, None]).transpose(1, 2) @ self.inputs.T).square().sum(dim=1)
        outside = length - inside
        return torch.where(outside > SAME_DIRECTION * length, outside, 0.0)


def _gram_schmidt(columns: Tensor) -> Tensor:
    """The columns [G,D,N] made orthonormal one after the other; zero where one lies in the span of those before it."""
    basis = torch.zeros_like(columns)
    for number in range(columns.shape[2]):
        column = columns[:, :, number : number + 1]
        for _ in range(2):  # once more, for what rounding left
            column = column - basis @ (basis.transpose(1, 2) @ column)
        left, length = (value.square().sum(dim=1) for value in (column[:, :, 0], columns[:, :, number]))
        scale = torch.where(left > SAME_DIRECTION * length, left.clamp_min(torch.finfo(left.dtype).tiny).rsqrt(), 0.0)
        basis[:, :, number] = column[:, :, 0] * scale[:, None]
    return basis


def noise_scaled_layers(layers: Iterable[TimeLayer], samples: int) -> list[NoiseScaledLayer]:
    """The layers that say anything about ``samples`` timesteps, in units of their noise."""
    # A row with no more entries than samples is matched exactly by any of them.
    telling = [layer.rows(layer.std.isfinite().sum(dim=1) > samples) for layer in layers]
    return [_scale_by_noise(layer, samples) for layer in telling if layer.gradient.any()]


def _scale_by_noise(layer: TimeLayer, samples: int) -> NoiseScaledLayer:
    """A layer in units of its noise.

    Its variance is the known one plus float32's error. In a layer without missing entries it is raised to what is seen
    outside the best subspace of ``samples`` dimensions: noise that the server was not told of.
    """
    known = layer.std.isfinite()
    if not known.all():
        return _with_gaps(layer, known)
    deviation = (layer.std.square().mean(1, keepdim=True) + _float_error(layer.gradient, known)).sqrt()
    values = layer.gradient / deviation
    rows, columns = values.shape
    if rows > columns:
        values = torch.linalg.qr(values).R
    if rows > samples:
        outside = torch.linalg.svdvals(values)[samples:].square().sum()
        unexplained = math.sqrt(float(outside) / ((rows - samples) * (columns - samples)))
        values = values / max(unexplained, 1.0)
    return NoiseScaledLayer(layer.inputs, values.new_ones(1, columns), values[None], rows)


def _with_gaps(layer: TimeLayer, known: Tensor) -> NoiseScaledLayer:
    deviation = (layer.std.square() + _float_error(layer.gradient, known)).sqrt()
    values = torch.where(known, layer.gradient / deviation, 0.0)
    rows = values.square().sum(dim=1).argsort(descending=True)[:ROWS_WITH_GAPS]
    return NoiseScaledLayer(layer.inputs, 1 / deviation[rows], values[rows, None, :], len(rows))


def _float_error(gradient: Tensor, known: Tensor) -> Tensor:
    """Variance of every row's entries from computing in float32, [R,1]."""
    squared = torch.where(known, gradient, 0.0).square()
    row = squared.sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(1)
    return FLOAT32_ERROR**2 * (row + CANCELLING_ROW**2 * squared.sum() / known.sum())


class Evidence:
    """Several layers together, with the same candidates."""

    def __init__(self, layers: Sequence[NoiseScaledLayer]) -> None:
        self.layers = layers
        self.rows = sum(layer.rows for layer in layers)
        self.candidates = len(layers[0].inputs) if layers else 0

    def gains(self, members: Sequence[int]) -> Tensor:
        """By how much each candidate would lower the squared remainder if it joined, [C]; -inf for the members."""
        gains = torch.stack([layer.gains(members) for layer in self.layers]).sum(dim=0)
        gains[list(members)] = -math.inf
        return gains

    def remainder(self, members: Sequence[int]) -> float:
        """Squared remainder that the members leave."""
        return sum(float(layer.remainder(layer.basis(members)).square().sum()) for layer in self.layers)

    def size(self) -> float:
        """Squared size of the gradients."""
        return sum(float(layer.values.square().sum()) for layer in self.layers)

    def misfit(self, members: Sequence[int]) -> float:
        """What the members leave beyond noise: the error of the inputs, and all that the model of an update misses."""
        freedom = sum(
            layer.rows * float((layer.weights > 0).sum(1).sub(len(members)).double().mean()) for layer in self.layers
        )
        return max(self.remainder(members) - NOISE_EXCESS * freedom, 0.0) + FLOAT32_ERROR**2 * self.size()

    def completeness(self, members: Sequence[int]) -> float:
        """By how many standard deviations the faintest further sample would have beaten having none in its place."""
        rows = torch.tensor(self.rows)
        return float(_deviations(FAINTEST_SAMPLE * self.size() - rows, rows, self.misfit(members)))

    def spread(self, member: int, others: Sequence[int]) -> Tensor:
        """Rows times squared sine between the member and each candidate, beside the others, [C]."""
        return torch.stack([layer.spread(member, others) for layer in self.layers]).sum(dim=0)

    def margins(self, members: Sequence[int]) -> tuple[list[float], list[float]]:
        """By how many standard deviations every member beats each replacement, and by how many it beats having none.

        Having none in its place costs the R that a member gains from noise alone.
        """
        misfit = self.misfit(members)
        over_others, over_none = [], []
        for member in members:
            others = [other for other in members if other != member]
            gains = self.gains(others)
            deviations = _deviations(gains[member] - gains, self.spread(member, others), misfit)
            deviations[[member, *others]] = math.inf
            over_others.append(float(deviations.min()))
            over_none.append(float(_deviations(gains[member] - self.rows, torch.tensor(self.rows), misfit)))
        return over_others, over_none

    def rival_pair(self, members: Sequence[int], left: int, right: int) -> tuple[list[int], float]:
        """The set that comes closest with ``left`` moved a little and ``right`` anywhere, and the margin over it.

        Two timesteps that both are a little off can make a set that no single exchange improves.
        """
        others = [other for other in members if other not in (left, right)]
        misfit, gains, spread = self.misfit(members), self.gains(others), self.spread(left, others)
        own = gains[left] + self.gains([*others, left])[right]
        closest, margin = list(members), math.inf
        for moved in range(max(left - NEARBY, 0), min(left + NEARBY + 1, self.candidates)):
            if moved in members:
                continue
            leads = own - gains[moved] - self.gains([*others, moved])
            deviations = _deviations(leads, spread[moved] + self.spread(right, [*others, moved]), misfit)
            if float(deviations.min()) < margin:
                closest, margin = [*others, moved, int(deviations.argmin())], float(deviations.min())
        return closest, margin


def _deviations(leads: Tensor, spread: Tensor, misfit: float) -> Tensor:
    """How unlikely leads in squared remainder were if the rival were right, in standard deviations of a normal.

    Were the rival right, and the squared distance between the two explanations a, the lead would have the mean -a and,
    under white noise, the variance 4 (R sin^2 + a), from the noise along two inputs and along their difference; the
    misfit, all of it along that difference, makes the last term a (1 + misfit). This is the least over all a >= 0.
    """
    excess = 1 + misfit
    near = leads / (2 * spread.sqrt())
    far = (excess * leads - spread).clamp_min(0).sqrt() / excess
    return torch.where(excess * leads > 2 * spread, far, near).nan_to_num(nan=0.0)
