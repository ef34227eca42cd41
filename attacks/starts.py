"""Several starts of a search that share one budget; the matching loss alone decides between them."""

import math
from collections.abc import Iterator
from typing import TypeVar

from attacks.lbfgs import LBFGSRun
from attacks.problem import InversionProblem

ARun = TypeVar("ARun", bound=LBFGSRun)

_SLICE = 40
"""Evaluations between two looks at a run's progress."""
_PATIENCE = 4
"""Slices that every run gets."""
_PROGRESS = 2.0
_STANDSTILL = 1 + 1e-5
"""Noise makes up most of a matching loss, and the image the rest."""


def search_starts(starts: Iterator[ARun], problem: InversionProblem, max_evaluations: int, solved_below: float) -> ARun:
    """Work on one run as long as it makes progress, then on the next; when all were tried, on the best of them.

    Returns the run with the smallest matching loss when one is solved, the best stands still after all were tried, all
    have broken down, or the budget is spent.
    """
    tried = [next(starts)]
    run = tried[0]
    while run.loss > solved_below and problem.evaluations < max_evaluations:
        run = tried[-1]
        if not _progresses(run, _PROGRESS):
            following = next(starts, None)
            if following is not None:
                tried.append(following)
            elif math.isinf(_best(tried).loss) or not _progresses(_best(tried), _STANDSTILL):
                break
            run = following or _best(tried)
        run.advance(min(_SLICE, max_evaluations - problem.evaluations))
    return _best(tried)


def _best(runs: list[ARun]) -> ARun:
    return min(runs, key=lambda run: run.loss)


def _progresses(run: LBFGSRun, factor: float) -> bool:
    """Whether the loss fell by ``factor`` over the last two slices; a young run has the benefit of the doubt."""
    if len(run.losses) < _PATIENCE:
        return not run.losses or math.isfinite(run.loss)
    return run.losses[-1] * factor <= run.losses[-3]
