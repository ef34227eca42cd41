"""Stage: random starts, of which the first gets its x_t from the row spaces of the gradient."""

from collections.abc import Iterator
from itertools import cycle

from pydantic import Field
from typing_extensions import override

from attacks.inversion.budget import Budget
from attacks.inversion.restarts import search_starts
from attacks.residual.minimiser import Candidate, Minimiser
from attacks.residual.stage import Stage
from attacks.residual.subspace_init import SubspaceInit


class FirstStarts(Stage):
    """Searches from one start until it stalls, then from the next, until one is on track."""

    stall_ratio: float = Field(2.0, gt=1, description="a start stalls when its loss falls by less over two slices")
    promising_batch: float = Field(1e-2, gt=0, description="matching loss at which a batch goes on to be refined")
    subspace_share: float = Field(
        2 / 5, ge=0, le=1, description="part of the attack's evaluations that may go into x_t from row spaces"
    )
    subspace_init: SubspaceInit = Field(SubspaceInit(), description="x_t from the row spaces of the gradient")

    @override
    def run(self, candidate: Candidate, budget: Budget) -> Candidate:
        """The best of all starts; ``candidate`` says what to search for, and is not searched itself."""
        minimiser = candidate.minimiser
        below = minimiser.on_track_below
        if minimiser.problem.samples > 1:
            below = max(below, self.promising_batch)
        return search_starts(self._starts(minimiser, budget), budget, below, self.stall_ratio, minimiser.patience)

    def _starts(self, minimiser: Minimiser, budget: Budget) -> Iterator[Candidate]:
        """Random starts without end, over all scales and all possible unknowns by turns."""
        evaluations = budget.share(self.subspace_share) // len(minimiser.possible)
        for number, scales in enumerate(cycle(minimiser.start_scales)):
            for unknowns in minimiser.possible:
                candidate = minimiser.draw(unknowns, scales)
                if number == 0:
                    self.subspace_init.move(candidate, budget.more(evaluations))
                yield candidate
