"""Stage: a batch, in which samples that are behind are searched for alone, and wrong ones start anew.

Each sample's share of the time projections' gradient says how far it is (attacks/residual/sample_diagnostics.py). Those
behind are searched for alone on the deflated gradient (attacks/residual/deflation.py), and then all together.
"""

from collections.abc import Callable, Sequence
from itertools import cycle, product

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from attacks.inversion.budget import Budget
from attacks.residual.deflation import can_be_deflated, deflated_run, deflation_error
from attacks.residual.local_training import explained_as_one_batch
from attacks.residual.minimiser import Candidate
from attacks.residual.sample_diagnostics import sample_misfits, unexplained_energy
from attacks.residual.stage import Stage

Vectors = tuple[Tensor, Tensor]
"""Each sample's own share of the time projections' gradient, and its share of the observed one; both [D,N]."""
Error = Callable[[Tensor, Tensor], Tensor]
"""From these to an error of every sample, [N]."""


class BatchRefinement(Stage):
    """Searches on for all samples of a batch, by turns together and alone."""

    stall_ratio: float = Field(2.0, gt=1, description="a search stalls when its loss falls by less over two slices")
    turn_stall_ratio: float = Field(
        5.0, gt=1, description="the same for all samples together, where those behind get further turns alone"
    )
    last_stall_ratio: float = Field(1 + 1e-5, gt=1, description="the same where no sample can be searched for alone")
    worst_ratio: float = Field(
        0.1, gt=0, le=1, description="samples with so much of the largest error are searched for alone, or start anew"
    )
    largest_deflation_error: float = Field(
        0.1, gt=0, description="deflation error above which searching the deflated gradient is pointless"
    )
    deflated_loss_ratio: float = Field(
        2.0, gt=0, description="a deflated search ends at so many times the deflation error; 2 to 6 is all it reaches"
    )
    model_error_factor: float = Field(
        2.0, gt=0, description="a batch that stands for local steps ends below so many times what a batch neglects"
    )

    @override
    def run(self, candidate: Candidate, budget: Budget) -> Candidate:
        """The best candidate when the matching loss is small enough, or the budget spent.

        Whenever the search stalls, and all samples fit, those behind are searched for alone, and then all together, as
        long as that helps. If some do not fit, or it does not help, the wrong ones start anew from random points,
        unless the candidate is on track. A batch that stands for local steps ends where it can explain no more.
        """
        minimiser, problem = candidate.minimiser, candidate.minimiser.problem
        as_one_batch = problem.simulates_local_steps and minimiser.steps is None
        last = problem.simulates_local_steps or problem.noisy
        goal = minimiser.on_track_below if last else minimiser.solved_below
        draws = cycle(product(minimiser.start_scales, (sample_misfits, unexplained_energy)))
        stuck = False
        minimiser.run_until_stalled(candidate, budget, goal, self.stall_ratio)
        while candidate.loss > goal and budget.left:
            vectors = candidate.sample_vectors()
            all_fit = bool((sample_misfits(*vectors) < minimiser.rules.fits_below).all())
            if all_fit and as_one_batch and explained_as_one_batch(candidate, self.model_error_factor):
                break
            if all_fit and not stuck:
                other = self._refine(candidate, vectors, budget, goal)
                stuck = other is candidate or other.loss * self.stall_ratio > candidate.loss
            elif candidate.loss <= minimiser.on_track_below:
                break
            else:
                other = self._redraw(candidate, vectors, budget, goal, *next(draws))
                stuck = stuck and other.loss >= candidate.loss
            candidate = min(candidate, other, key=lambda candidate: candidate.loss)
        return candidate

    def _refine(self, candidate: Candidate, vectors: Vectors, budget: Budget, goal: float) -> Candidate:
        """Search on for those behind alone and then for all together; or only for all, if none can be alone."""
        point = self._search_alone(candidate, candidate.point, self._worst(sample_misfits(*vectors)), vectors, budget)
        if point is None:
            candidate.minimiser.run_until_stalled(candidate, budget, goal, self.last_stall_ratio)
            return candidate
        return self._search_together(candidate, point, budget, goal, self.turn_stall_ratio)

    def _redraw(
        self,
        candidate: Candidate,
        vectors: Vectors,
        budget: Budget,
        goal: float,
        scales: tuple[float, float],
        error: Error,
    ) -> Candidate:
        """From random points for the samples with the largest error; those that fit wait until these do."""
        wrong = self._worst(error(*vectors))
        fresh = candidate.unknowns.draw(candidate.minimiser.generator, *scales)
        point = [
            torch.where(wrong.to(new.device).view(-1, 1, 1, 1), new, old)
            for new, old in zip(fresh, candidate.point, strict=True)
        ]
        free = wrong | (sample_misfits(*vectors) >= candidate.minimiser.rules.fits_below)
        alone = self._search_alone(candidate, point, free, vectors, budget)
        return self._search_together(candidate, alone or point, budget, goal, self.stall_ratio)

    def _search_together(
        self, candidate: Candidate, point: Sequence[Tensor], budget: Budget, goal: float, stall_ratio: float
    ) -> Candidate:
        """A candidate from another point of the same unknowns."""
        other = candidate.minimiser.start(candidate.unknowns, point)
        candidate.minimiser.run_until_stalled(other, budget, goal, stall_ratio)
        return other

    def _search_alone(
        self, candidate: Candidate, point: Sequence[Tensor], free: Tensor, vectors: Vectors, budget: Budget
    ) -> list[Tensor] | None:
        """The point after a search for the ``free`` samples, bool [N]; None where the others are too wrong for that."""
        if not can_be_deflated(candidate) or free.all():
            return None
        error = deflation_error(*vectors, free)
        if not error < self.largest_deflation_error:
            return None
        run = deflated_run(candidate, point, free)
        below = self.deflated_loss_ratio * error
        candidate.minimiser.run_until_stalled(run, budget, below, self.stall_ratio)
        return run.point

    def _worst(self, errors: Tensor) -> Tensor:
        """Which samples have about the largest of ``errors`` [N]; bool [N]."""
        return errors >= self.worst_ratio * errors.max()
