"""The most probable image behind a noisy gradient.

Least squares is maximum likelihood: it reads noise into the image wherever the gradient says little. The server knows
more than the gradient. The noise of the forward process is normal and photographs are what they are
(attacks/natural_images.py). With the squared error D weighed by the inverse variances of the gradient's entries, and Z
the squared gradient in units of them, -2 ln p(g*|u) = Z D(u) up to a constant, and

    -2 ln p(u|g*) / Z = D(g(u), g*) + (|eps(u)|^2 + E(x0(u))) / Z.

The less noise there is the larger is Z; an exact gradient leaves the prior nothing to say.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.matching import Derivative, GradientMatching, Matching, flatten, weighted_squared_error
from attacks.problem import InversionProblem
from attacks.residual_spaces import Space


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
        """A detached scalar and its derivative for each unknown; counts as one evaluation."""
        value, derivatives = self._matching(unknowns)
        energy = self._weight * self.space.energy(unknowns)
        slopes = torch.autograd.grad(energy, list(unknowns))
        return value + energy.detach(), [a + b for a, b in zip(derivatives, slopes, strict=True)]


def settle_scale(space: Space, matching: Matching, unknowns: Sequence[Tensor]) -> list[Tensor]:
    """Have the problem take its gradient's unknown scale for the likeliest at these unknowns; returns them at scale."""
    problem = space.problem
    scaled = [unknown.requires_grad_() for unknown in space.at_scale(unknowns)]
    gradient = flatten(list(matching.gradient(scaled).values()))
    weighted = _precisions(problem) * gradient
    problem.settle_scale((weighted @ flatten(list(problem.gradient.values()))) / (weighted @ gradient))
    return scaled


def _precisions(problem: InversionProblem) -> Tensor:
    deviations = flatten(list(problem.uncertainty.values()))
    return torch.where(deviations > 0, deviations.square().reciprocal(), 0.0)
