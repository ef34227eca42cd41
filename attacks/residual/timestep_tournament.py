"""Stage: a single image's timestep that cannot be read off the update, found by matching.

Where the time layers' gradients are kept back, or lost in noise, all other layers still depend on the timestep. At a
wrong one no (x_t, r) explains their gradients; the nearer it is to the right one, the smaller is the matching loss. So
searches at timesteps spread over the schedule compete by successive halving, and then the winner with its neighbours,
at smaller and smaller distances.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from attacks.inversion.budget import Budget
from attacks.inversion.problem import InversionProblem
from attacks.inversion.restarts import search_starts, successive_halving
from attacks.residual.minimiser import Candidate, Minimiser
from attacks.residual.stage import Stage
from attacks.residual.unknowns import NoisyImageAndResidual


class TimestepTournament(Stage):
    """Finds image and timestep together."""

    halving_share: float = Field(
        1 / 64, gt=0, le=1, description="part of the attack's evaluations for each search in a round of halving"
    )
    budget_factor: float = Field(2.0, gt=0, description="budget of tournaments, in times of the attack's evaluations")
    polish_share: float = Field(
        0.5, gt=0, description="budget of the stages that follow, as a part of the attack's evaluations"
    )
    first_timesteps: int = Field(24, ge=1, description="timesteps of the first round")
    distances: tuple[int, ...] = Field(
        (20, 10, 5, 3, 2, 1),
        description="distances of the winner's neighbours, round by round, for T = 1000; they scale with T",
    )
    stall_ratio: float = Field(2.0, gt=1, description="a winner stalls when its loss falls by less over two slices")

    @override
    def run(self, candidate: Candidate, budget: Budget) -> Candidate:
        """The best winner of tournaments from random starts; of ``candidate`` only problem and labels count."""
        minimiser, labels = candidate.minimiser, candidate.unknowns.labels
        evaluations = math.ceil(self.halving_share * budget.whole)
        winners = (self._winner(minimiser, labels, scales, evaluations) for scales in cycle(minimiser.start_scales))
        best = search_starts(winners, budget, minimiser.on_track_below, self.stall_ratio, minimiser.patience)
        best.minimiser = replace(minimiser, possible=[best.unknowns])
        best.changes_metric = minimiser.metric is not None
        return best

    def _winner(
        self, minimiser: Minimiser, labels: Tensor | None, scales: tuple[float, float], evaluations: int
    ) -> Candidate:
        """The candidate at the timestep that explains the update best; none changes its metric in the meantime."""
        last = int(minimiser.problem.scheduler.config.num_train_timesteps) - 1
        count = self.first_timesteps
        spread = sorted({round(last * (2 * k + 1) / (2 * count)) for k in range(count)})
        unknowns = [at_timestep(minimiser.problem, timestep, labels) for timestep in spread]
        candidates = [minimiser.draw(each, scales, change_metric=False) for each in unknowns]
        [best] = successive_halving(candidates, evaluations)
        for distance in dict.fromkeys(max(1, round(distance * last / 999)) for distance in self.distances):
            [best] = successive_halving([best, *self._neighbours(best, distance, last)], evaluations)
        return best

    def _neighbours(self, candidate: Candidate, distance: int, last: int) -> Iterator[Candidate]:
        """Candidates from the same noisy image and residual, at timesteps so far away on either side."""
        unknowns, minimiser = candidate.unknowns, candidate.minimiser
        assert isinstance(unknowns, NoisyImageAndResidual)
        here = int(unknowns.timesteps)
        for timestep in (here - distance, here + distance):
            if 0 <= timestep <= last:
                moved = at_timestep(minimiser.problem, timestep, unknowns.labels)
                point = moved.point_of(*unknowns.noisy_images_and_residuals(candidate.point))
                yield minimiser.start(moved, point, change_metric=False)


class TimestepCheck(Stage):
    """Claims no timestep that explains too little of the update."""

    clear_below: float = Field(
        0.1, gt=0, description="matching loss above which noise hides which timestep is right: too many fit as well"
    )

    @override
    def run(self, candidate: Candidate, budget: Budget) -> Candidate:
        """The same candidate, of which no timestep is reported if it is not on track."""
        if candidate.loss > min(candidate.minimiser.on_track_below, self.clear_below):
            candidate.unknowns = candidate.unknowns.without_claimed_timesteps()
        return candidate


def at_timestep(problem: InversionProblem, timestep: int, labels: Tensor | None) -> NoisyImageAndResidual:
    """Noisy image and residual of a single image at a timestep, with its label int64 [1] where there are labels."""
    return NoisyImageAndResidual(problem, torch.tensor([timestep], device=problem.device), labels)
