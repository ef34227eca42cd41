"""DLG, "Deep Leakage from Gradients" (Zhu et al. 2019, arXiv 1906.08935), adapted to diffusion.

The classifier's input and label become image, noise and timestep. With the last two dictated by the server, what is
left is to find pixels whose gradient has the smallest squared distance to the observed one (algorithm 1), with L-BFGS
from noise. The line search (strong Wolfe) and ending before the budget are additions.
"""

import math
from typing import ClassVar

import torch
from pydantic import Field
from typing_extensions import override

from attacks.attack import Attack, Needs, Outcome
from attacks.inversion.gradient_matching import Derivative, match_pixels
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem


class DLG(Attack):
    """Plain squared error, L-BFGS, pixels from noise, a single start."""

    name: ClassVar[str] = "dlg"
    needs: ClassVar[Needs] = Needs.NOISE_AND_TIMESTEPS | Needs.GRADIENT | Needs.MAGNITUDES

    max_evaluations: int = Field(600, ge=1, description="budget")
    solved_below: float = Field(1e-10, gt=0, description="matching loss at which the search ends")
    slice_evaluations: int = Field(20, ge=1, description="the search ends when so many evaluations bring no progress")
    history: int = Field(100, ge=1, description="curvature pairs of L-BFGS")
    derivative: Derivative = Field("one-sided", description="derivative of the matching loss")

    @property
    @override
    def curvature_pairs(self) -> int:
        return self.history

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find the pixels."""
        matching, budget = match_pixels(problem, self.derivative), problem.budget.of(self.max_evaluations)
        run = LBFGSRun(matching, [problem.randn(generator)], self.history)
        while run.advance(budget.at_most(self.slice_evaluations)) > self.solved_below:
            if not budget.left or run.loss >= min(run.losses[:-1], default=math.inf):
                break
        assert problem.timesteps is not None
        return Outcome(run.point[0], problem.timesteps, matching.value(run.point))
