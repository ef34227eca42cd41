"""Stage: two Adam steps, matched together from what was found for each step's signs.

Adam takes the scale off every entry: one with gradients near zero moves as far as any other. Matched as it is, such
entries would outweigh all others. So each entry's error is measured in the gradient that it takes to make it, relative
to its tensor:

    1 / w_j = std_j^2 + (d eps / g_1j)^2 + (c rms(a_l) / a_j)^2,    a_j = sqrt(g_1j^2 + g_2j^2),

with the gradients found so far for entry j of tensor l, and the deviation of rounding std_j. c is the error that is
seen. eps / |g_1j| is what Adam's eps takes off the first step. It is small, but all that shows the scale of the
gradients, and so that of the residuals. In every round d becomes smaller; the scale, one number, follows from the fit
of the round before.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from attacks.attack import Outcome
from attacks.inversion.budget import Budget
from attacks.inversion.gradient_matching import flatten, weighted_squared_error
from attacks.inversion.problem import InversionProblem
from attacks.residual.adam_matching import AdamMatching
from attacks.residual.local_training import samples_in_order
from attacks.residual.minimiser import Candidate, Minimiser
from attacks.residual.stage import Stage
from attacks.residual.unknowns import CleanImage, NoisyImageAndResidual, Unknowns

MEDIAN_DEVIATION = 0.6745
"""Median magnitude of a normal variable, in standard deviations."""
TINY = 1e-38
"""What a magnitude or square of 0 counts as."""


class AdamSteps(Stage):
    """Matches the update of two Adam steps, in rounds."""

    step_share: float = Field(0.35, gt=0, le=0.5, description="part of the attack's evaluations for each step's signs")
    rounds: tuple[float, ...] = Field(
        (1.0, 1.0, 0.3, 0.1),
        min_length=1,
        description="d of every round, the relative error of what Adam's eps takes off the first step",
    )
    outlier: float = Field(5.0, gt=1, description="deviations from which an entry is left out, after the first round")
    scale_below: float = Field(
        2e-4,
        ge=0,
        description="error of a gradient's entries, relative to their tensor's root mean square, below which the "
        "residuals' scale is searched for: Adam's eps shows in what is left",
    )
    largest_scale: float = Field(
        2.0, gt=1, description="so many times too large or too small the residuals' scale may be before a round"
    )
    scales_tried: int = Field(10, ge=3, description="scales on either side of the best one so far")
    scale_precision: float = Field(1e-5, gt=0, description="precision of the scale's logarithm")
    clear_deviations: float = Field(
        5.0, ge=0, description="lead of the best scale, in standard deviations, below which the residuals keep theirs"
    )
    stall_ratio: float = Field(1.1, gt=1, description="a round ends when the loss falls by less over two slices")

    @override
    def run(self, candidate: Candidate, budget: Budget) -> Candidate:
        """A candidate of the last round."""
        for number, eps_error in enumerate(self.rounds):
            candidate = self._begin_round(candidate, eps_error, first=number == 0)
            left = budget.more(int(budget.left) // (len(self.rounds) - number))
            candidate.minimiser.run_until_stalled(candidate, left, 0.0, self.stall_ratio)
        return candidate

    def join(self, minimiser: Minimiser, unknowns: Unknowns, steps: Sequence[Candidate]) -> Candidate:
        """The candidate for both steps, at what was found for each."""
        in_order = samples_in_order(minimiser.problem)
        return replace(minimiser, metric=None, steps=in_order).start(unknowns, joined_point(unknowns, steps))

    def _begin_round(self, candidate: Candidate, eps_error: float, first: bool) -> Candidate:
        """The same point, but for the residuals' scale, under the weights of a round."""
        matching, problem = candidate.matching, candidate.minimiser.problem
        assert isinstance(matching, AdamMatching)
        gradients = [gradient.detach() for gradient in matching.step_gradients(candidate.point)]
        error, known = matching.at_scale(gradients, 1.0) - matching.observed, matching.signs != 0
        relative = _relative_sizes(problem, gradients)
        seen = float((error.abs() * relative)[known].median()) / MEDIAN_DEVIATION
        shortfall = (eps_error * matching.eps / gradients[0].abs().clamp_min(TINY)).clamp_max(1.0)
        variances = flatten(list(problem.std.values())).square() + shortfall.square()
        variances += (seen / relative).square()
        if not first:
            known &= error.square() <= self.outlier**2 * variances
        weights = torch.where(known, 1 / variances, 0.0)
        distance = weighted_squared_error(weights)
        scale = 1.0
        if not first and seen < self.scale_below and isinstance(candidate.unknowns, NoisyImageAndResidual):
            scale = self._clear_scale(matching.with_distance(distance), gradients)
            matching = matching.shortened(scale * gradients[0])
        distance = weighted_squared_error(weights / (weights * matching.observed.square()).sum())
        point = [candidate.point[0], *(scale * residual for residual in candidate.point[1:])]
        minimiser = replace(candidate.minimiser, distance=distance)
        return Candidate(minimiser, candidate.unknowns, matching.with_distance(distance), point)

    def _clear_scale(self, matching: AdamMatching, gradients: Sequence[Tensor]) -> float:
        """By how much the residuals are to be multiplied; 1 where eps does not show it clearly.

        The distance of ``matching`` is in units of the variance.
        """

        def misfit(logarithm: float) -> float:
            return float(matching.distance(matching.at_scale(gradients, math.exp(logarithm)), matching.observed)[0])

        centre, width, count = 0.0, math.log(self.largest_scale), self.scales_tried
        while width > self.scale_precision:
            tried = [centre + width * k / count for k in range(-count, count + 1)]
            centre = min(tried, key=misfit)
            width /= count / 2
        return math.exp(centre) if misfit(0.0) - misfit(centre) > self.clear_deviations**2 else 1.0


def _relative_sizes(problem: InversionProblem, gradients: Sequence[Tensor]) -> Tensor:
    """a_j / rms(a_l) of every entry, [P]."""
    sizes = [parameter.numel() for parameter in problem.parameters.values()]
    squares = (gradients[0].square() + gradients[1].square()).clamp_min(TINY).split(sizes)
    return torch.cat([(square / square.mean()).sqrt() for square in squares])


def joined_point(unknowns: Unknowns, steps: Sequence[Candidate]) -> list[Tensor]:
    """The point of both steps' samples, whatever each step was searched by."""
    if isinstance(unknowns, NoisyImageAndResidual):
        pairs = []
        for step in steps:
            assert isinstance(step.unknowns, NoisyImageAndResidual)  # as private as both together
            point = step.unknowns.with_estimated_scale(step.point)
            pairs.append(step.unknowns.noisy_images_and_residuals(point))
        return unknowns.point_of(*(torch.cat(values) for values in zip(*pairs, strict=True)))
    assert isinstance(unknowns, CleanImage)
    return unknowns.point_of_images(torch.cat([step.matching.images(step.point) for step in steps]))


def side_by_side(steps: Sequence[Candidate]) -> Outcome:
    """What was found for each step, of an update that cannot be simulated; the matching loss is the mean of theirs."""
    found = [step.outcome() for step in steps]
    return Outcome(
        torch.cat([step.images for step in found]),
        torch.cat([step.unknowns.reported_timesteps for step in steps]),
        sum(step.matching_loss for step in found) / len(found),
    )
