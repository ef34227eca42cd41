"""Several starts of a search that share one budget; the matching loss alone decides between them."""

import math
from collections.abc import Iterable
from typing import TypeVar

from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem

ARun = TypeVar("ARun", bound=LBFGSRun)

PROGRESS = 2.0
"""By how much the matching loss of a promising start falls over two slices."""
STANDSTILL = 1 + 1e-5
"""The same for a search that is worth ending well: noise makes up most of a matching loss, and the image the rest."""

_BEHIND = 2.0
"""Times the matching loss of the first, for those who drop out of a race."""
_GETS_ON = 1.1
"""By how much the loss falls over two slices while a race is open: near the end a few per cent decide."""
_SLICE = 40
"""Evaluations between two looks at a run's progress, times the square root of the number of images."""
_PATIENCE = 4
"""Slices that every run gets."""


def search_starts(starts: Iterable[ARun], problem: InversionProblem, max_evaluations: int, below: float) -> ARun:
    """Work on one run as long as it makes progress, then on the next, until one is ``below`` or the budget is spent.

    Returns the run with the smallest matching loss.
    """
    tried = []
    for run in starts:
        tried.append(run)
        search_on(run, problem, max_evaluations, below, PROGRESS)
        if run.loss <= below or problem.evaluations >= max_evaluations:
            break
    return min(tried, key=lambda run: run.loss)


def successive_halving(runs: list[ARun], evaluations: int, finalists: int = 1) -> list[ARun]:
    """Who is left of rounds of so many evaluations a run, in which the better half by matching loss stays.

    Jamieson and Talwalkar 2016, arXiv 1502.07943.
    """
    while len(runs) > finalists:
        runs = sorted(runs, key=lambda run: run.advance(evaluations))[: len(runs) // 2]
    return runs


def race(runs: list[ARun], problem: InversionProblem, max_evaluations: int) -> ARun:
    """The winner of a race in which who has twice the matching loss of the first drops out, until nobody gets on."""
    while len(runs) > 1 and problem.evaluations < max_evaluations and any(_progresses(run, _GETS_ON) for run in runs):
        affordable = max(1, (max_evaluations - problem.evaluations) // len(runs))
        best = min(run.advance(min(_SLICE, affordable)) for run in runs)
        runs = [run for run in runs if run.loss <= _BEHIND * best]
    return min(runs, key=lambda run: run.loss)


def search_on(run: LBFGSRun, problem: InversionProblem, max_evaluations: int, below: float, progress: float) -> None:
    """Work on a run until its loss is ``below``, it makes less ``progress`` or the budget is spent."""
    size = int(_SLICE * math.sqrt(problem.samples))
    while run.loss > below and problem.evaluations < max_evaluations and _progresses(run, progress):
        run.advance(min(size, max_evaluations - problem.evaluations))


def _progresses(run: LBFGSRun, factor: float) -> bool:
    """Whether the loss fell by ``factor`` over the last two slices; a young run has the benefit of the doubt."""
    if len(run.losses) < _PATIENCE:
        return not run.losses or math.isfinite(run.loss)
    return run.losses[-1] * factor <= run.losses[-3]
