"""The derivative of an objective beside a central difference of its values, in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from attacks.inversion.problem import InversionProblem
from attacks.observation import Observation

Objective = Callable[[Sequence[Tensor]], tuple[Tensor, list[Tensor]]]


def double_problem(observation: Observation) -> InversionProblem:
    """The problem in float64; dictated noise stays as it is, float32."""
    return to_double(InversionProblem(observation, "cpu"))


def to_double(problem: InversionProblem) -> InversionProblem:
    """The same problem, its model and gradient made float64."""
    problem.model.double()
    problem.gradient = {name: value.double() for name, value in problem.gradient.items()}
    return problem


def assert_derivative(objective: Objective, shapes: Sequence[tuple[int, ...]], relative: float, step: float) -> None:
    """Along the derivative with respect to each unknown, and a random direction, at a random point."""
    generator = torch.Generator().manual_seed(5)
    point = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    _, derivatives = objective(point)
    for index, derivative in enumerate(derivatives):
        random = torch.randn(derivative.shape, generator=generator, dtype=torch.float64)
        direction = derivative / derivative.norm() + 0.5 * random / random.norm()
        ahead, behind = (
            objective([(u + s * direction if i == index else u).detach().requires_grad_() for i, u in enumerate(point)])
            for s in (step, -step)
        )
        slope = float(ahead[0] - behind[0]) / (2 * step)
        assert float((derivative * direction).sum()) == pytest.approx(slope, rel=relative)
