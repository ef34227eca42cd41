"""The matching loss of a weight delta that two steps of Adam or AdamW made.

The first step is sign(g_1) up to Adam's eps, and known (attacks/inversion/adam_steps.py). So are the weights before the
second, theta_1, and with them the second step u_2 alone. It is a smooth function of the gradients g_1 at theta_0 and
g_2 at theta_1, coupled weight decay and FedProx's term included (arXiv 1412.6980, algorithm 1):

    u_2 = m / (s + eps),    m = (beta_1 g_1 + g_2) / (1 + beta_1),    s = sqrt((beta_2 g_1^2 + g_2^2) / (1 + beta_2)).

The derivative stops at the weights. Simulated like u_2, u_1 and theta_1 would jump whenever an entry of g_1 near zero
changes its sign, and these jumps swamp everything else. What eps takes off u_1 is put in once g_1 is nearly found
(``shortened``).
"""

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor
from typing_extensions import override

from attacks.inversion.adam_steps import known_first_step, weights_before_steps
from attacks.inversion.gradient_matching import RELATIVE_STEP, Distance, flatten
from attacks.inversion.problem import InversionProblem
from attacks.inversion.simulated_training import SimulatedTraining, StepLoss

SMALLEST_GRADIENT = 1e-18
"""Least s; the square of a smaller gradient is 0 in float32."""


class AdamMatching(SimulatedTraining):
    """D(G(u), g*) and its derivative, with G the mean of both steps, (u_1 + u_2) / 2."""

    def __init__(
        self,
        problem: InversionProblem,
        step_loss: StepLoss,
        steps: Sequence[Tensor],
        distance: Distance,
        images: Callable[[Sequence[Tensor]], Tensor],
    ) -> None:
        super().__init__(problem, step_loss, steps, distance, images)
        optimizer = problem.circumstances.local_optimizer
        assert optimizer is not None
        self.betas, self.eps = optimizer.betas, optimizer.eps
        self.coupled = optimizer.weight_decay if optimizer.name == "adam" else 0.0
        self.lr = optimizer.lr
        first_step = known_first_step(problem)
        self.visited = [flatten(list(weights.values())) for weights in weights_before_steps(problem, first_step)]
        self.signs = self.first_step = flatten(list(first_step.values()))

    def with_distance(self, distance: Distance) -> "AdamMatching":
        """The same by another distance."""
        other = copy(self)
        other.distance = distance
        return other

    def shortened(self, first: Tensor) -> "AdamMatching":
        """The same with what eps takes off the first step where ``first`` [P] is its gradient."""
        other = copy(self)
        other.first_step = self._first_step(first)
        other.visited = [self.visited[0], self.visited[1] - self.lr * (other.first_step - self.first_step)]
        return other

    def step_gradients(self, unknowns: Sequence[Tensor]) -> list[Tensor]:
        """g_1 and g_2, [P] each; counts as one evaluation."""
        self.problem.budget.spend()
        return self._pulled(self._forward(unknowns)[1])

    def mean_step(self, first: Tensor, second: Tensor, first_step: Tensor) -> Tensor:
        """(u_1 + u_2) / 2, [P], with g_1, g_2 and u_1."""
        beta1, beta2 = self.betas
        m = (beta1 * first + second) / (1 + beta1)
        squared = (beta2 * first.square() + second.square()) / (1 + beta2)
        return (first_step + m / (squared.clamp_min(SMALLEST_GRADIENT**2).sqrt() + self.eps)) / 2

    def at_scale(self, gradients: Sequence[Tensor], scale: float) -> Tensor:
        """The mean step if g_1 and g_2 were ``scale`` times as large, which eps alone makes a difference to."""
        first, second = (scale * gradient for gradient in gradients)
        return self.mean_step(first, second, self._first_step(first))

    def _first_step(self, first: Tensor) -> Tensor:
        return self.signs * first.abs() / (first.abs() + self.eps)

    @override
    def _forward(self, unknowns: Sequence[Tensor]) -> tuple[list[Tensor], list[list[Tensor]], Tensor]:
        each = zip(self.visited, self.steps, strict=True)
        gradients = [self._gradients(weights, samples, unknowns) for weights, samples in each]
        first, second = self._pulled(gradients)
        return self.visited, gradients, self.mean_step(first, second, self.first_step)

    @override
    def _backward(
        self, unknowns: Sequence[Tensor], visited: list[Tensor], gradients: list[list[Tensor]], direction: Tensor
    ) -> list[Tensor]:
        first, second = (gradient.requires_grad_() for gradient in self._pulled(gradients))
        along = torch.autograd.grad(self.mean_step(first, second, self.first_step), [first, second], direction)
        total = [torch.zeros_like(unknown) for unknown in unknowns]
        for weights, here, to_gradient, samples in zip(visited, gradients, along, self.steps, strict=True):
            norm = to_gradient.norm()
            if norm == 0:
                continue
            step = RELATIVE_STEP * self.sent.norm() / norm
            ahead = self._gradients(weights + step * to_gradient, samples, unknowns)
            total = [sum_ + (a - b) / step for sum_, a, b in zip(total, ahead[1:], here[1:], strict=True)]
        return total

    def _pulled(self, gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """g_1 and g_2: the loss's gradients with what coupled weight decay and FedProx add."""
        return [
            here[0] + self.coupled * weights + self.proximal * (weights - self.sent)
            for weights, here in zip(self.visited, gradients, strict=True)
        ]
