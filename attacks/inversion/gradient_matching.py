"""The gradient-matching loss and its derivative with respect to the unknowns.

Gradient inversion minimises D(g(u), g*) over unknowns u: g(u) is the gradient of a training loss l(theta, u) at the
observed weights, g* the observed gradient. The derivative is a mixed second derivative along one direction. With
v = dD/dg held constant,

    dD/du = d/du <grad_theta l(theta, u), v> = d/d eta grad_u l(theta + eta v, u)    at eta = 0.

So a finite difference over eta needs first-order gradients alone, and works with any attention kernel. The exact double
backward is there as a reference.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Literal, Protocol

import torch
from torch import Tensor

from attacks.inversion.problem import InversionProblem
from fl_sim.diffusion import DiffusionTask

Objective = Callable[[Sequence[Tensor]], tuple[Tensor, list[Tensor]]]
"""From unknowns to a value (a detached scalar) and its derivative for each unknown."""
TrainingLoss = Callable[[Sequence[Tensor]], Tensor]
"""From unknowns to the scalar whose weight gradient is g(u)."""
Distance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From g and g*, each [P], to D and dD/dg."""
Images = Callable[[Sequence[Tensor]], Tensor]
"""From unknowns to the images [N,C,H,W] that they stand for."""
Derivative = Literal["automatic", "one-sided", "central", "double-backward"]


class Matching(Protocol):
    """A matching loss over unknowns."""

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """D (a detached scalar) and dD/du for each unknown; counts as one evaluation."""

    def value(self, unknowns: Sequence[Tensor]) -> float:
        """D alone."""

    def gradient(self, unknowns: Sequence[Tensor]) -> dict[str, Tensor]:
        """g(u) by parameter."""

    def images(self, unknowns: Sequence[Tensor]) -> Tensor:
        """The images [N,C,H,W] that the unknowns stand for."""


RELATIVE_STEP = 1e-4
"""|eta v| / |theta|, the step of the finite difference: small against curvature, large against rounding."""


def squared_error(gradient: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """D = |g - g*|^2 / |g*|^2 (DLG, arXiv 1906.08935, algorithm 1, made scale-free) and dD/dg."""
    difference, scale = gradient - observed, observed.square().sum()
    return difference.square().sum() / scale, difference * (2 / scale)


def weighted_squared_error(weights: Tensor) -> Distance:
    """D = sum_j w_j (g_j - g*_j)^2 with weights [P]."""

    def distance(gradient: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        difference = gradient - observed
        weighted = weights * difference
        return weighted @ difference, 2 * weighted

    return distance


def cosine_distance(gradient: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """D = 1 - <g, g*> / (|g| |g*|) (Inverting Gradients, arXiv 2003.14053, eq. 4) and dD/dg."""
    norm = gradient.norm()
    direction = gradient / norm
    # As half the squared distance of unit vectors; 1 minus a cosine would lose half of the digits.
    difference = direction - observed / observed.norm()
    value = difference.square().sum() / 2
    return value, (difference - value * direction) / norm


DISTANCES: dict[str, Distance] = {"squared": squared_error, "cosine": cosine_distance}


def weighted_cosine_distance(weights: Tensor) -> Distance:
    """``cosine_distance`` of sqrt(w) g and sqrt(w) g*, for a gradient that is known but for a positive factor."""
    roots = weights.sqrt()

    def distance(gradient: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        value, derivative = cosine_distance(roots * gradient, roots * observed)
        return value, roots * derivative

    return distance


class GradientMatching:
    """D(g(u), g*) and its derivative for one inversion problem.

    Args:
        problem: supplies the weights, the observed gradient and the count of evaluations.
        training_loss: from the unknowns to the scalar whose weight gradient is g(u); it uses ``problem.model``.
        distance: D and dD/dg for flat vectors.
        derivative: ``one-sided`` (one shifted gradient), ``central`` (two) or ``double-backward`` (exact);
            ``automatic``: exact for a classifier, whose ReLUs have kinks that a finite difference steps over, else
            one-sided.
        images: from the unknowns to the images [N,C,H,W] that they stand for; the first unknown, unless given.
        observed: g* by parameter; the problem's observed gradient, unless given.
    """

    def __init__(
        self,
        problem: InversionProblem,
        training_loss: TrainingLoss,
        distance: Distance = squared_error,
        derivative: Derivative = "one-sided",
        images: Images = itemgetter(0),
        observed: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.problem = problem
        self.training_loss = training_loss
        self.distance = distance
        self.derivative = derivative if derivative != "automatic" else _usual_derivative(problem)
        self.images = images
        self.parameters: list[Tensor] = list(problem.parameters.values())
        self.observed = flatten(list((observed or problem.gradient).values()))
        self.weights = flatten([parameter.detach() for parameter in self.parameters])
        self.weights_norm = self.weights.norm()

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """D (a detached scalar) and dD/du for each unknown; counts as one evaluation.

        The unknowns are leaf tensors that require gradients; neither their ``.grad`` nor the model's is touched.
        """
        return self.problem.evaluate(self._value_and_derivative, unknowns, self.images)

    def _value_and_derivative(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        self.problem.budget.spend()
        if self.derivative == "double-backward":
            return self._double_backward(unknowns)
        gradient, at_weights = self._gradients(unknowns)
        value, direction = self.distance(gradient, self.observed)
        norm = direction.norm()
        if norm == 0:
            return value, [torch.zeros_like(unknown) for unknown in unknowns]
        step = RELATIVE_STEP * self.weights_norm / norm
        ahead = self._unknowns_gradient(unknowns, step * direction)
        if self.derivative == "one-sided":
            return value, [(a - b) / step for a, b in zip(ahead, at_weights, strict=True)]
        behind = self._unknowns_gradient(unknowns, -step * direction)
        return value, [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]

    def value(self, unknowns: Sequence[Tensor]) -> float:
        """D alone."""
        return float(self.problem.evaluate(self._value, unknowns)[0])

    def _value(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        gradient = flatten(list(self.gradient(unknowns).values()))
        return self.distance(gradient, self.observed)[0], []

    def gradient(self, unknowns: Sequence[Tensor]) -> dict[str, Tensor]:
        """g(u) by parameter."""
        self.problem.budget.spend()
        gradients = torch.autograd.grad(self.training_loss(unknowns), self.parameters)
        return dict(zip(self.problem.parameters, gradients, strict=True))

    def _gradients(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The gradient of the training loss with respect to the weights, flat, and to each unknown."""
        gradients = torch.autograd.grad(self.training_loss(unknowns), [*self.parameters, *unknowns])
        count = len(self.parameters)
        return flatten(gradients[:count]), list(gradients[count:])

    def _unknowns_gradient(self, unknowns: Sequence[Tensor], shift: Tensor) -> Sequence[Tensor]:
        """grad_u l at the weights plus ``shift``; the weights are restored exactly."""
        set_weights(self.parameters, self.weights + shift)
        try:
            return torch.autograd.grad(self.training_loss(unknowns), list(unknowns))
        finally:
            set_weights(self.parameters, self.weights)

    def _double_backward(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        loss = self.training_loss(unknowns)
        gradient = flatten(torch.autograd.grad(loss, self.parameters, create_graph=True))
        value, direction = self.distance(gradient.detach(), self.observed)
        return value, list(torch.autograd.grad(gradient @ direction, list(unknowns)))


def _usual_derivative(problem: InversionProblem) -> Derivative:
    return "one-sided" if isinstance(problem.task, DiffusionTask) else "double-backward"


def match_pixels(
    problem: InversionProblem,
    derivative: Derivative,
    distance: Distance = squared_error,
    labels: Tensor | None = None,
) -> GradientMatching:
    """``distance`` over images [N,C,H,W], by the client's own loss with the noise and timesteps known.

    ``labels`` int64 [N] are the images', where training uses labels; those that were revealed, unless given.
    """
    told = problem.labels if labels is None else labels

    def training_loss(unknowns: Sequence[Tensor]) -> Tensor:
        return problem.loss(unknowns[0], problem.noise, problem.timesteps, told)

    return GradientMatching(problem, training_loss, distance, derivative)


def set_weights(parameters: list[Tensor], flat: Tensor) -> None:
    """Copy a vector made by ``flatten`` back into the parameters."""
    with torch.no_grad():
        chunks = flat.split([parameter.numel() for parameter in parameters])
        torch._foreach_copy_(parameters, [c.view_as(p) for c, p in zip(chunks, parameters, strict=True)])


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All tensors as one vector, in their order."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
