"""The most probable image behind a noisy gradient.

Least squares is maximum likelihood: it reads noise into the image wherever the gradient says little. The server knows
more than the gradient. The noise of the forward process is normal and photographs are what they are
(attacks/inversion/image_prior.py). With the squared error D weighed by the inverse variances of the gradient's entries, and Z
the squared gradient in units of them, -2 ln p(g*|u) = Z D(u) up to a constant, and

    -2 ln p(u|g*) / Z = D(g(u), g*) + (|eps(u)|^2 + E(x0(u))) / Z.

The less noise there is the larger is Z; an exact gradient leaves the prior nothing to say. For quantisation, whose
errors are not normal, this is an approximation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.inversion.entry_weights import ROUNDING
from attacks.inversion.gradient_matching import Derivative, GradientMatching, flatten, weighted_squared_error
from attacks.inversion.problem import InversionProblem
from attacks.residual.unknowns import KnownSpace, PrivateSpace, Space


class Posterior:
    """-2 ln p(u|g*) / Z and its derivative, for a gradient of known scale; ``value`` is the matching loss D alone."""

    def __init__(self, space: Space, derivative: Derivative) -> None:
        problem = space.problem
        precisions = _precisions(problem)
        z = (precisions * flatten(list(problem.gradient.values())).square()).sum()
        distance = weighted_squared_error(precisions / z)
        matching = GradientMatching(problem, space.training_loss, distance, derivative, space.images)
        self.space, self._matching, self._weight = space, matching, 1 / z
        self.images, self.value, self.gradient = matching.images, matching.value, matching.gradient

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A detached scalar and its derivative for each unknown; one evaluation, which takes half more than others."""
        value, derivatives = self._matching(unknowns)
        energy = self._weight * self.space.energy(unknowns)
        slopes = torch.autograd.grad(energy, list(unknowns))
        return value + energy.detach(), [a + b for a, b in zip(derivatives, slopes, strict=True)]


def with_all_that_is_known(space: Space, unknowns: Sequence[Tensor]) -> tuple[Space, list[Tensor]]:
    """The same images where dictated noise is used and, if it can be told, the gradient's scale is settled."""
    problem = space.problem
    if problem.noise is not None and isinstance(space, PrivateSpace):
        images, space = space.images(unknowns).detach(), KnownSpace(problem)
        unknowns = [images / space.image_scale]
    if problem.scale_known:
        return space, list(unknowns)
    unknowns = space.at_scale(unknowns)
    gradient = flatten(list(GradientMatching(problem, space.training_loss).gradient(unknowns).values()))
    weighted = _precisions(problem) * gradient
    scale = (weighted @ flatten(list(problem.gradient.values()))) / (weighted @ gradient)
    if scale > 0:  # which a search that got nowhere does not always end with
        problem.settle_scale(scale.clamp_max(1))
    return space, unknowns


def _precisions(problem: InversionProblem) -> Tensor:
    observed, deviations = (flatten(list(named.values())) for named in (problem.gradient, problem.uncertainty))
    floor = ROUNDING * observed.square().mean().sqrt()
    return torch.where(deviations > 0, (deviations.square() + floor.square()).reciprocal(), 0.0)
