"""The matching loss of a weight delta, by simulating the client's local SGD steps.

From the second step on the client's weights are not the ones that it was sent, so the mean gradient at those is only an
approximation. With the unknowns u_k of step k, the weights theta_0 that were sent and an empty momentum buffer m_0,

    m_{k+1} = mu m_k + g(theta_k, u_k) + p (theta_k - theta_0) + wd theta_k,
    theta_{k+1} = theta_k - lr m_{k+1},

with momentum mu, FedProx's proximal_mu p and weight decay wd. The update is theta_K - theta_0; that of a
moving average of the weights is the mean of all theta_k - theta_0 with the shares of ``ema_shares``. The derivative
goes back through the steps. It needs products of a Hessian with a vector and mixed derivatives along one: the same
finite difference over shifted weights as in attacks/inversion/gradient_matching.py. So a simulation with its derivative
costs two gradients a step.
"""

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor

from attacks.inversion.gradient_estimate import step_weights
from attacks.inversion.gradient_matching import RELATIVE_STEP, Distance, flatten, set_weights
from attacks.inversion.problem import InversionProblem
from fl_sim import network

StepLoss = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""From the indices of a step's samples, int64 [B], and all unknowns to the step's training loss."""


class SimulatedTraining:
    """D(G(u), g*) and its derivative; G is the simulated delta, divided as the observed one is to give a mean gradient.

    Args:
        problem: has the weights, the optimiser, the observed mean gradient and the budget.
        step_loss: the training loss of one step.
        steps: for each local step the indices of its samples.
        distance: D and dD/dG for flat vectors.
        images: from the unknowns to the images [N,C,H,W], at the weights that the problem's model holds.
    """

    def __init__(
        self,
        problem: InversionProblem,
        step_loss: StepLoss,
        steps: Sequence[Tensor],
        distance: Distance,
        images: Callable[[Sequence[Tensor]], Tensor],
    ) -> None:
        optimizer = problem.circumstances.local_optimizer
        assert optimizer is not None
        self.problem, self.step_loss, self.steps, self.distance = problem, step_loss, steps, distance
        self._images_at = images
        self.lr, self.momentum, self.weight_decay = optimizer.lr, optimizer.momentum, optimizer.weight_decay
        self.proximal = optimizer.proximal_mu
        self.shares = network.ema_shares(problem.circumstances.ema_decay, len(steps))
        self.scale = self.lr * sum(step_weights(problem.circumstances))
        self.parameters: list[Tensor] = list(problem.parameters.values())
        self.observed = flatten(list(problem.gradient.values()))
        self.sent = flatten([parameter.detach() for parameter in self.parameters])

    def with_steps(self, steps: Sequence[Tensor]) -> "SimulatedTraining":
        """The same with the samples dealt to the steps in another way."""
        other = copy(self)
        other.steps = steps
        return other

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """D (a detached scalar) and dD/du for each unknown; counts as one evaluation."""
        return self.problem.evaluate(self._value_and_derivative, unknowns, self.images)

    def _value_and_derivative(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        self.problem.budget.spend()
        visited, gradients, mean_gradient = self._forward(unknowns)
        value, direction = self.distance(mean_gradient, self.observed)
        return value, self._backward(unknowns, visited, gradients, direction)

    def value(self, unknowns: Sequence[Tensor]) -> float:
        """D alone."""
        return float(self.problem.evaluate(self._value, unknowns)[0])

    def _value(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.distance(flatten(list(self.gradient(unknowns).values())), self.observed)[0], []

    def gradient(self, unknowns: Sequence[Tensor]) -> dict[str, Tensor]:
        """G(u) by parameter."""
        self.problem.budget.spend()
        chunks = self._forward(unknowns)[2].split([parameter.numel() for parameter in self.parameters])
        named = zip(self.problem.parameters.items(), chunks, strict=True)
        return {name: chunk.view_as(parameter) for (name, parameter), chunk in named}

    def images(self, unknowns: Sequence[Tensor]) -> Tensor:
        """The images [N,C,H,W], those of every step at that step's weights."""
        visited, _, _ = self._forward(unknowns)
        found = torch.empty_like(unknowns[0])
        try:
            for weights, samples in zip(visited, self.steps, strict=True):
                set_weights(self.parameters, weights)
                found[samples] = self._images_at(unknowns)[samples].detach()
        finally:
            set_weights(self.parameters, self.sent)
        return found

    def _forward(self, unknowns: Sequence[Tensor]) -> tuple[list[Tensor], list[list[Tensor]], Tensor]:
        """Weights before every step, the loss's gradients there (weights' first), and the mean gradient."""
        weights, buffer, moved = self.sent, torch.zeros_like(self.sent), torch.zeros_like(self.sent)
        averaged = torch.zeros_like(moved)
        visited, gradients = [], []
        for samples, share in zip(self.steps, self.shares, strict=True):
            visited.append(weights)
            gradients.append(self._gradients(weights, samples, unknowns))
            pull = self.weight_decay * weights + self.proximal * (weights - self.sent)
            buffer = self.momentum * buffer + gradients[-1][0] + pull
            moved = moved + buffer
            averaged = averaged + share * moved
            weights = self.sent - self.lr * moved
        return visited, gradients, averaged * (self.lr / self.scale) - self.weight_decay * self.sent

    def _backward(
        self, unknowns: Sequence[Tensor], visited: list[Tensor], gradients: list[list[Tensor]], direction: Tensor
    ) -> list[Tensor]:
        """dD/du from ``direction`` = dD/dG, with the derivatives to theta_k and m_k carried from step to step."""
        total = [torch.zeros_like(unknown) for unknown in unknowns]
        to_weights, to_buffer = torch.zeros_like(direction), torch.zeros_like(direction)
        for weights, here, samples, share in reversed(
            list(zip(visited, gradients, self.steps, self.shares, strict=True))
        ):
            to_weights = to_weights - share * direction / self.scale
            to_buffer = to_buffer - self.lr * to_weights
            norm = to_buffer.norm()
            if norm == 0:
                continue
            step = RELATIVE_STEP * self.sent.norm() / norm
            ahead = self._gradients(weights + step * to_buffer, samples, unknowns)
            along = [(a - b) / step for a, b in zip(ahead, here, strict=True)]
            total = [sum_ + term for sum_, term in zip(total, along[1:], strict=True)]
            to_weights = to_weights + along[0] + (self.weight_decay + self.proximal) * to_buffer
            to_buffer = self.momentum * to_buffer
        return total

    def _gradients(self, weights: Tensor, samples: Tensor, unknowns: Sequence[Tensor]) -> list[Tensor]:
        """Of a step's loss at ``weights``: to the weights, flat, and to each unknown."""
        set_weights(self.parameters, weights)
        try:
            found = torch.autograd.grad(self.step_loss(samples, unknowns), [*self.parameters, *unknowns])
        finally:
            set_weights(self.parameters, self.sent)
        count = len(self.parameters)
        return [flatten(found[:count]), *found[count:]]
