"""DLG, "Deep Leakage from Gradients" (Zhu et al. 2019, arXiv 1906.08935), adapted to diffusion.

The classifier's input and label become image, noise and timestep. With the last two dictated by the server, what is
left is to find pixels whose gradient has the smallest squared distance to the observed one (algorithm 1), with L-BFGS
from noise. The line search (strong Wolfe) and ending before the budget are additions.
"""

import math
from typing import ClassVar

import torch
from pydantic import Field

from attacks.attack import Attack, Needs, Outcome
from attacks.inversion.gradient_matching import Derivative, match_pixels
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem

_SLICE = 20


class DLG(Attack):
    """Plain squared error, L-BFGS, pixels from noise, a single start."""

    name: ClassVar[str] = "dlg"
    needs: ClassVar[Needs] = Needs.NOISE_AND_TIMESTEPS | Needs.GRADIENT | Needs.MAGNITUDES

    max_evaluations: int = Field(600, ge=1, description="budget")
    solved_below: float = Field(1e-10, gt=0, description="matching loss at which the search ends")
    history: int = Field(100, ge=1, description="L-BFGS history")
    derivative: Derivative = Field(
        "one-sided", description="derivative of the matching loss (attacks/inversion/gradient_matching.py)"
    )

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find the pixels."""
        matching = match_pixels(problem, self.derivative)
        run = LBFGSRun(matching, [problem.randn(generator)], self.history)
        while run.advance(min(_SLICE, self.max_evaluations - problem.evaluations)) > self.solved_below:
            if problem.evaluations >= self.max_evaluations or run.loss >= min(run.losses[:-1], default=math.inf):
                break
        assert problem.timesteps is not None
        return Outcome(run.unknowns[0], problem.timesteps, matching.value(run.unknowns))
