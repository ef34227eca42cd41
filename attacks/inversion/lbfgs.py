"""A resumable L-BFGS search, so that several starts can share one budget of evaluations."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.inversion.gradient_matching import Objective

_SCALE = 1e8
"""torch's L-BFGS drops curvature pairs with y's <= 1e-10; a matching loss near its end would lose all of them."""


class LBFGSRun:
    """One start of torch's L-BFGS (strong Wolfe line search) on an objective that returns value and derivative.

    Attributes:
        unknowns: the current point, leaf tensors.
        losses: the smallest value seen in every slice so far; infinite after a breakdown (NaN), which ends the run.
    """

    def __init__(self, objective: Objective, start: Sequence[Tensor], history: int = 300) -> None:
        self.unknowns = [value.detach().clone().contiguous().requires_grad_() for value in start]
        self.losses: list[float] = []
        self.history = history
        self.change_objective(objective)

    def change_objective(self, objective: Objective) -> None:
        """Search on from the current point with another objective, of whose curvature nothing is known yet."""
        self.objective = objective
        self._optimizer = torch.optim.LBFGS(
            self.unknowns,
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
        """Spend about ``evaluations`` more (a line search overruns by at most one) and return ``loss``."""
        group = self._optimizer.param_groups[0]
        group["max_eval"] = group["max_iter"] = evaluations
        before = [unknown.detach().clone() for unknown in self.unknowns]
        seen: list[float] = []

        def closure() -> Tensor:
            value, derivatives = self.objective(self.unknowns)
            seen.append(float(value))
            if math.isnan(seen[-1]):  # of which torch's line search may make an IndexError
                raise FloatingPointError("the objective is NaN")
            for unknown, derivative in zip(self.unknowns, derivatives, strict=True):
                unknown.grad = derivative * _SCALE
            return value * _SCALE

        try:
            self._optimizer.step(closure)
            broken = not all(torch.isfinite(unknown).all() for unknown in self.unknowns)
        except FloatingPointError:
            broken = True
        if broken:
            self.put_back(before)
            self.change_objective(self.objective)
        self.losses.append(math.inf if broken else min(filter(math.isfinite, seen), default=math.inf))
        return self.loss

    def put_back(self, point: Sequence[Tensor]) -> None:
        """Go to another point."""
        with torch.no_grad():
            for unknown, value in zip(self.unknowns, point, strict=True):
                unknown.copy_(value)
