"""The search for a batch: samples that are behind have turns of their own, and those that are wrong are drawn anew.

What each sample adds to the time projections' gradient tells how far it is (attacks/residual/sample_diagnostics.py). Those that are
behind are searched for alone, on what the others leave of the gradient (attacks/residual/deflation.py), and then all together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, product

import torch
from torch import Tensor

from attacks.inversion.gradient_matching import Derivative
from attacks.inversion.restarts import PROGRESS, STANDSTILL, search_on
from attacks.residual.deflation import can_be_deflated, deflated_run, spoiled
from attacks.residual.sample_diagnostics import FITS, sample_misfits, unexplained
from attacks.residual.unknowns import SpaceRun

_WRONG = 0.1
"""Part of a batch's largest ``sample_misfits`` or ``unexplained`` share from which on a sample is among the worst."""
_SPOILED = 0.1
"""``spoiled`` share of what the right samples of a batch leave from which on it is no use to search in it."""
_CLEANEST = 2.0
"""Times the ``spoiled`` share: the matching loss with nothing left to find. Searches end at 2 to 6 times."""
_TURN = 5.0
"""What is ``PROGRESS`` elsewhere, for all samples together where those behind have had their turn and will again."""

Vectors = tuple[Tensor, Tensor]
"""What every sample adds to the time projections' gradient, and what was observed of it, each [D,N]."""
WayToBeWrong = Callable[[Tensor, Tensor], Tensor]
"""From these to how wrong each sample is, [N]."""
Rerun = Callable[[Sequence[Tensor]], SpaceRun]
"""From other unknowns to a search like the one before."""


def never(_: SpaceRun) -> bool:
    """No run is enough."""
    return False


@dataclass(frozen=True)
class BatchSearch:
    """A search for a batch until the matching loss is ``goal`` or the problem's evaluations are ``max_evaluations``.

    Attributes:
        rerun: all samples' search from other unknowns.
        starts: scales of fresh starts of x_t and r.
        balance, derivative: as the residual attack's (attacks/residual/attack.py).
    """

    rerun: Rerun
    generator: torch.Generator
    starts: Sequence[tuple[float, float]]
    balance: float
    derivative: Derivative
    max_evaluations: int
    goal: float

    def search(self, found: SpaceRun, found_below: float, enough: Callable[[SpaceRun], bool] = never) -> SpaceRun:
        """Search on, and whenever that stands still for those samples alone that are behind.

        As long as all samples fit, that goes on from where they are, if it helps. Else those that are wrong are drawn
        anew, unless the matching loss is ``found_below``: by turns those that fit worst and those of which most is
        missing, a small one that is lost, or a large one that is a little wrong and hides the small ones. A run whose
        samples all fit may be ``enough``.
        """
        problem = found.space.problem
        draws = cycle(product(self.starts, (sample_misfits, unexplained)))
        stuck = False
        self._search_on(found, PROGRESS)
        while found.loss > self.goal and problem.evaluations < self.max_evaluations:
            vectors = found.sample_vectors()
            fits = sample_misfits(*vectors) < FITS
            if fits.all() and enough(found):
                break
            if fits.all() and not stuck:
                run = self._further(found, vectors)
                stuck = run is found or run.loss * PROGRESS > found.loss
            elif found.loss <= found_below:
                break
            else:
                run = self._redrawn(found, vectors, *next(draws))
                stuck = stuck and run.loss >= found.loss
            found = min(found, run, key=lambda run: run.loss)
        return found

    def _further(self, found: SpaceRun, vectors: Vectors) -> SpaceRun:
        """From where the samples are: those behind alone and then all, or all for as long as it gets on."""
        start = self._alone(found, found.unknowns, _worst(sample_misfits(*vectors)), vectors)
        if start is None:
            self._search_on(found, STANDSTILL)
            return found
        return self._together(start, _TURN)

    def _redrawn(self, found: SpaceRun, vectors: Vectors, scales: tuple[float, float], way: WayToBeWrong) -> SpaceRun:
        """From fresh unknowns for the samples that are wrong; those that fit wait until these fit, too."""
        wrong = _worst(way(*vectors))
        fresh = found.space.start(self.generator, *scales)
        start = [
            torch.where(wrong.to(new.device).view(-1, 1, 1, 1), new, old)
            for new, old in zip(fresh, found.unknowns, strict=True)
        ]
        free = wrong | (sample_misfits(*vectors) >= FITS)
        return self._together(self._alone(found, start, free, vectors) or start, PROGRESS)

    def _search_on(self, run: SpaceRun, progress: float) -> None:
        search_on(run, run.space.problem, self.max_evaluations, self.goal, progress)

    def _together(self, start: Sequence[Tensor], progress: float) -> SpaceRun:
        run = self.rerun(start)
        self._search_on(run, progress)
        return run

    def _alone(self, found: SpaceRun, start: Sequence[Tensor], free: Tensor, vectors: Vectors) -> list[Tensor] | None:
        """All unknowns after a search for the ``free`` samples, bool [N]; None where the others leave nothing clear."""
        if not can_be_deflated(found) or free.all():
            return None
        left = spoiled(*vectors, free)
        if not left < _SPOILED:
            return None
        run = deflated_run(found, start, free, self.balance, self.derivative)
        search_on(run, found.space.problem, self.max_evaluations, _CLEANEST * left, PROGRESS)
        return run.unknowns


def _worst(by_sample: Tensor) -> Tensor:
    """Which samples are about the worst ones, bool [N]."""
    return by_sample >= _WRONG * by_sample.max()
