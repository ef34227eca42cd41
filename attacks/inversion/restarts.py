"""Several starts of a search that share one budget. The matching loss alone decides between them."""

import math
from collections.abc import Iterable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from attacks.inversion.budget import Budget
from attacks.inversion.lbfgs import LBFGSRun

ARun = TypeVar("ARun", bound=LBFGSRun)


class Patience(BaseModel):
    """How often a start is looked at, and how long it is left alone at first."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    slice_evaluations: int = Field(
        40, ge=1, description="evaluations between two looks at a start, times the square root of the number of images"
    )
    first_slices: int = Field(4, ge=3, description="slices that every start gets, whatever its progress")

    def for_samples(self, samples: int) -> "Patience":
        """The same for ``samples`` images, with longer slices."""
        return self.model_copy(update={"slice_evaluations": int(self.slice_evaluations * math.sqrt(samples))})

    def progresses(self, run: LBFGSRun, ratio: float) -> bool:
        """Whether the loss fell by the factor ``ratio`` over the last two slices; True for a young run."""
        if len(run.losses) < self.first_slices:
            return not run.losses or math.isfinite(run.loss)
        return run.losses[-1] * ratio <= run.losses[-3]


def search_starts(starts: Iterable[ARun], budget: Budget, below: float, stall_ratio: float, patience: Patience) -> ARun:
    """Search from one start until it stalls, then from the next, until one is ``below`` or the budget is spent.

    Returns the run with the smallest matching loss.
    """
    tried = []
    for run in starts:
        tried.append(run)
        run_until_stalled(run, budget, below, stall_ratio, patience)
        if run.loss <= below or not budget.left:
            break
    return min(tried, key=lambda run: run.loss)


def run_until_stalled(run: LBFGSRun, budget: Budget, below: float, stall_ratio: float, patience: Patience) -> None:
    """Continue a run until its loss is ``below``, falls by less than ``stall_ratio``, or the budget is spent."""
    while run.loss > below and budget.left and patience.progresses(run, stall_ratio):
        run.advance(budget.at_most(patience.slice_evaluations))


def successive_halving(runs: list[ARun], evaluations: int, finalists: int = 1) -> list[ARun]:
    """The ``finalists`` left after rounds of ``evaluations`` a run, each of which keeps the better half.

    Source: Jamieson and Talwalkar 2016, arXiv 1502.07943. The better half has the smaller matching losses.
    """
    while len(runs) > finalists:
        runs = sorted(runs, key=lambda run: run.advance(evaluations))[: len(runs) // 2]
    return runs


def race(runs: list[ARun], budget: Budget, stall_ratio: float, dropout_ratio: float, patience: Patience) -> ARun:
    """The best run after slices for all, until one is left, none progresses by ``stall_ratio``, or the budget is spent.

    A run whose matching loss exceeds ``dropout_ratio`` times the smallest drops out.
    """
    while len(runs) > 1 and budget.left and any(patience.progresses(run, stall_ratio) for run in runs):
        affordable = max(1, int(budget.left) // len(runs))
        best = min(run.advance(min(patience.slice_evaluations, affordable)) for run in runs)
        runs = [run for run in runs if run.loss <= dropout_ratio * best]
    return min(runs, key=lambda run: run.loss)
