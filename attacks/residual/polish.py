"""Stages at the end: the search goes on while it helps, and signs are matched at lower temperatures."""

from dataclasses import replace

from pydantic import Field
from typing_extensions import override

from attacks.inversion.budget import Budget
from attacks.inversion.sign_loss import sign_distance
from attacks.residual.minimiser import Candidate
from attacks.residual.stage import Stage


class Polish(Stage):
    """Continues a candidate until it is solved or stands still.

    Where the gradient is noisy, most of a matching loss is noise, and small changes of it are the image.
    """

    stall_ratio: float = Field(1 + 1e-5, gt=1, description="ends when the loss falls by less over two slices")

    @override
    def run(self, candidate: Candidate, budget: Budget) -> Candidate:
        """The same candidate."""
        minimiser = candidate.minimiser
        minimiser.run_until_stalled(candidate, budget, minimiser.solved_below, self.stall_ratio)
        return candidate


class SignPolish(Polish):
    """The same on the sign loss at lower temperatures, at which wrong signs count more; for signs alone."""

    temperatures: tuple[float, ...] = Field((0.01,), description="temperatures of the sign loss, one after the other")

    @override
    def run(self, candidate: Candidate, budget: Budget) -> Candidate:
        """A candidate at the last temperature."""
        signs = list(candidate.minimiser.problem.gradient.values())
        for temperature in self.temperatures:
            minimiser = replace(candidate.minimiser, distance=sign_distance(signs, temperature))
            candidate = super().run(minimiser.start(candidate.unknowns, candidate.point), budget)
        return candidate
