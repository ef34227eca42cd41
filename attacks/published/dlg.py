"""DLG, "Deep Leakage from Gradients" (Zhu et al. 2019, arXiv 1906.08935).

It looks for pixels whose gradient has the smallest squared distance to the observed one (algorithm 1), with L-BFGS
from noise. Of a classifier the labels are read off the last layer first, as iDLG does (arXiv 2001.02610), or dummy
labels are searched for along with the pixels, as published. In diffusion noise and timestep, dictated by the server,
take the place of the label. The line search (strong Wolfe), ending before the budget and several starts are additions.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from attacks.attack import Attack, AttackError, Needs, Outcome
from attacks.inversion.budget import Budget
from attacks.inversion.gradient_matching import Derivative, GradientMatching, match_pixels
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.labels.recovery import labels_for_search
from attacks.observation import Observation
from fl_sim.diffusion import DiffusionTask


class DLG(Attack):
    """Plain squared error, L-BFGS, pixels from noise."""

    name: ClassVar[str] = "dlg"
    needs: ClassVar[Needs] = Needs.NOISE_AND_TIMESTEPS | Needs.GRADIENT | Needs.MAGNITUDES

    max_evaluations: int = Field(600, ge=1, description="budget of all starts")
    starts: int = Field(1, ge=1, description="starts from other noise, where the one before did not solve it")
    solved_below: float = Field(1e-10, gt=0, description="matching loss at which the search ends")
    slice_evaluations: int = Field(20, ge=1, description="a start ends when so many evaluations bring no progress")
    history: int = Field(100, ge=1, description="curvature pairs of L-BFGS")
    labels: Literal["recovered", "optimised"] = Field(
        "recovered", description="a classifier's: revealed or read off the last layer (iDLG), or searched for (DLG)"
    )
    derivative: Derivative = Field("automatic", description="derivative of the matching loss")

    @property
    @override
    def curvature_pairs(self) -> int:
        return self.history

    @override
    def check(self, observation: Observation) -> None:
        super().check(observation)
        if self.labels == "optimised" and isinstance(observation.circumstances.task, DiffusionTask):
            raise AttackError(
                f"attack {self.name!r}: labels = 'optimised' is for classifiers (task = 'classification'); "
                "allowed here: 'recovered'"
            )

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find the pixels, and the labels if they are searched for too."""
        labels = None
        if self.labels == "recovered":
            labels = labels_for_search(problem)
            matching = match_pixels(problem, self.derivative, labels=labels)
        else:
            matching = match_pixels_and_labels(problem, self.derivative)
        runs, budget = [], problem.budget.of(self.max_evaluations)
        for _ in range(self.starts):
            start = [problem.randn(generator)]
            if labels is None and problem.num_classes is not None:
                start.append(torch.randn(problem.samples, problem.num_classes, generator=generator).to(problem.device))
            runs.append(self.descend(matching, start, budget))
            if runs[-1].loss <= self.solved_below or not budget.left:
                break
        best = min(runs, key=lambda run: run.loss)
        if len(best.point) > 1:
            labels = best.point[1].argmax(dim=1)
        return Outcome(best.point[0], None, matching.value(best.point), labels)

    def descend(self, matching: GradientMatching, start: Sequence[Tensor], budget: Budget) -> LBFGSRun:
        """L-BFGS from ``start`` until it is solved, stalls, or the budget is spent."""
        run = LBFGSRun(matching, start, self.history)
        while run.advance(budget.at_most(self.slice_evaluations)) > self.solved_below:
            if not budget.left or run.loss >= min(run.losses[:-1], default=math.inf):
                break
        return run


def match_pixels_and_labels(problem: InversionProblem, derivative: Derivative) -> GradientMatching:
    """The squared error over images [N,C,H,W] and logits [N,K], whose softmax is a soft label (algorithm 1)."""

    def training_loss(unknowns: Sequence[Tensor]) -> Tensor:
        images, logits = unknowns
        return problem.loss(images, labels=logits.softmax(dim=1))

    return GradientMatching(problem, training_loss, derivative=derivative)
