"""Stage: the most probable image behind a noisy gradient (maximum a posteriori).

Least squares is maximum likelihood: where the gradient says little, it reads noise into the image. More is known than
the gradient: the noise of the forward process is normal, and photographs have a prior
(attacks/inversion/image_prior.py). Let D be the squared error weighed by the inverse variances of the gradient's
entries, and Z the squared gradient in units of its noise. Then -2 ln p(g*|u) = Z D(u) up to a constant, and

    -2 ln p(u|g*) / Z = D(g(u), g*) + (|eps(u)|^2 + E(x0(u))) / Z.

The less noise, the larger is Z: for an exact gradient the prior does not count. The errors of quantisation are not
normal; for them this is an approximation.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from attacks.inversion.budget import Budget
from attacks.inversion.entry_weights import SMALLEST_STD
from attacks.inversion.gradient_matching import Derivative, GradientMatching, flatten, weighted_squared_error
from attacks.inversion.problem import InversionProblem
from attacks.residual.minimiser import Candidate
from attacks.residual.stage import Stage
from attacks.residual.unknowns import CleanImage, NoisyImageAndResidual, Unknowns


class MapEstimate(Stage):
    """Continues on the posterior, where the gradient has noise of a known size."""

    budget_share: float = Field(
        1 / 8, ge=0, lt=1, description="part of the attack's evaluations that is kept for this stage"
    )
    stall_ratio: float = Field(1 + 1e-5, gt=1, description="ends when the objective falls by less over two slices")

    @override
    def run(self, candidate: Candidate, budget: Budget) -> Candidate:
        """The most probable candidate; the same one where the gradient's scale cannot be estimated."""
        unknowns, point = to_map_problem(candidate.unknowns, candidate.point)
        if not unknowns.problem.scale_known:
            return candidate
        minimiser = replace(candidate.minimiser, problem=unknowns.problem)
        probable = Candidate(minimiser, unknowns, MapObjective(unknowns, minimiser.derivative), point)
        minimiser.run_until_stalled(probable, budget, 0.0, self.stall_ratio)
        return probable


class MapObjective:
    """-2 ln p(u|g*) / Z and its derivative, for a gradient of known scale; ``value`` is the matching loss D alone."""

    def __init__(self, unknowns: Unknowns, derivative: Derivative) -> None:
        problem = unknowns.problem
        precisions = _precisions(problem)
        z = (precisions * flatten(list(problem.gradient.values())).square()).sum()
        distance = weighted_squared_error(precisions / z)
        matching = GradientMatching(problem, unknowns.training_loss, distance, derivative, unknowns.images)
        self._unknowns, self._matching, self._weight = unknowns, matching, 1 / z
        self.images, self.value, self.gradient = matching.images, matching.value, matching.gradient

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A detached scalar and its derivative for each unknown; one evaluation, which takes half more than others."""
        return self._unknowns.problem.evaluate(self._value_and_derivative, unknowns)

    def _value_and_derivative(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        value, derivatives = self._matching(unknowns)
        energy = self._weight * self._unknowns.energy(unknowns)
        slopes = torch.autograd.grad(energy, list(unknowns))
        return value + energy.detach(), [a + b for a, b in zip(derivatives, slopes, strict=True)]


def to_map_problem(unknowns: Unknowns, point: Sequence[Tensor]) -> tuple[Unknowns, list[Tensor]]:
    """The same images as unknowns of a problem that uses all that is known.

    Noise that was dictated makes the clean image the only unknown. A scale of the gradient that was unknown is
    estimated, if that is possible: from what the forward process and the schedule say of the size of r.
    """
    problem = unknowns.problem
    if problem.noise is not None and isinstance(unknowns, NoisyImageAndResidual):
        images, unknowns = unknowns.images(point).detach(), CleanImage(problem)
        point = [images / unknowns.image_scale]
    if problem.scale_known:
        return unknowns, list(point)
    point = unknowns.with_estimated_scale(point)
    gradient = flatten(list(GradientMatching(problem, unknowns.training_loss).gradient(point).values()))
    weighted = _precisions(problem) * gradient
    scale = (weighted @ flatten(list(problem.gradient.values()))) / (weighted @ gradient)
    if scale > 0:  # which a search that failed does not always end with
        unknowns = unknowns.of_problem(problem.with_scale(scale.clamp_max(1)))
    return unknowns, point


def _precisions(problem: InversionProblem) -> Tensor:
    """1 / std^2 of every entry, [P]; 0 where nothing is known of it or nothing is uncertain."""
    observed, deviations = (flatten(list(named.values())) for named in (problem.gradient, problem.std))
    floor = SMALLEST_STD * observed.square().mean().sqrt()
    return torch.where(deviations > 0, (deviations.square() + floor.square()).reciprocal(), 0.0)
