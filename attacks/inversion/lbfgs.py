"""L-BFGS that can be interrupted and continued, so that several starts can share one budget."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.inversion.gradient_matching import Objective

_SCALE = 1e8
"""torch's L-BFGS drops curvature pairs with y's <= 1e-10; a matching loss near its end would lose all of them."""


class LBFGSRun:
    """One start of torch's L-BFGS (strong Wolfe line search) on an objective.

    Args:
        objective: from unknowns to value and derivative.
        start: the unknowns to start from; they are copied.
        history: number of curvature pairs.

    Attributes:
        point: the current unknowns, leaf tensors that require gradients.
        losses: the smallest value of every slice of the search so far; infinite after a breakdown (NaN).
    """

    def __init__(self, objective: Objective, start: Sequence[Tensor], history: int = 300) -> None:
        self.point = [value.detach().clone().contiguous().requires_grad_() for value in start]
        self.losses: list[float] = []
        self.history = history
        self.change_objective(objective)

    def change_objective(self, objective: Objective) -> None:
        """Continue from the current point with another objective; the curvature of the old one is forgotten."""
        self.objective = objective
        self._optimizer = torch.optim.LBFGS(
            self.point,
            history_size=self.history,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )

    @property
    def loss(self) -> float:
        """The smallest value of the last slice; infinite before the first."""
        return self.losses[-1] if self.losses else math.inf

    def advance(self, evaluations: int) -> float:
        """Search a slice of about ``evaluations`` (a line search overruns by at most one) and return ``loss``."""
        group = self._optimizer.param_groups[0]
        group["max_eval"] = group["max_iter"] = evaluations
        before = [value.detach().clone() for value in self.point]
        seen: list[float] = []

        def closure() -> Tensor:
            value, derivatives = self.objective(self.point)
            seen.append(float(value))
            if math.isnan(seen[-1]):  # of which torch's line search may make an IndexError
                raise FloatingPointError("the objective is NaN")
            for unknown, derivative in zip(self.point, derivatives, strict=True):
                unknown.grad = derivative * _SCALE
            return value * _SCALE

        try:
            self._optimizer.step(closure)
            broken = not all(torch.isfinite(value).all() for value in self.point)
        except FloatingPointError:
            broken = True
        if broken:
            self.move_to(before)
            self.change_objective(self.objective)
        self.losses.append(math.inf if broken else min(filter(math.isfinite, seen), default=math.inf))
        return self.loss

    def move_to(self, point: Sequence[Tensor]) -> None:
        """Continue from another point."""
        with torch.no_grad():
            for unknown, value in zip(self.point, point, strict=True):
                unknown.copy_(value)
