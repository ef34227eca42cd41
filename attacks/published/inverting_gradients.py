"""Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053), on classifiers as published, and adapted to diffusion.

The pixels minimise (eq. 4)

    1 - <g(x), g*> / (|g(x)| |g*|) + alpha TV(x),

by Adam on the sign of the derivative, with a step that decays by ten after 3/8, 5/8 and 7/8 of the iterations, and
pixels kept within their range. Of several local SGD steps the delta is matched by that of simulated training (section
6). A classifier's labels are taken as known there; here they are read off the last layer where clients keep them. In
diffusion the server dictates noise and timesteps.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Needs, Outcome
from attacks.inversion.gradient_matching import Derivative, Matching, Objective, cosine_distance, match_pixels
from attacks.inversion.problem import InversionProblem
from attacks.inversion.simulated_training import SimulatedTraining
from attacks.labels.recovery import labels_for_search

ITERATIONS = {"short": 4_800, "published": 24_000}
"""The authors' code has the former as its default, and the paper's experiments took the latter."""


class InvertingGradients(Attack):
    """Cosine distance, total variation, Adam on signs."""

    name: ClassVar[str] = "inverting-gradients"
    needs: ClassVar[Needs] = Needs.NOISE_AND_TIMESTEPS | Needs.SGD_STEPS | Needs.OWN_SIGNS

    recipe: Literal["short", "published"] = Field("short", description="4,800 iterations, or the paper's 24,000")
    iterations: int | None = Field(
        None, ge=8, description="of every start, always to the last one; unset: the recipe's"
    )
    starts: int = Field(1, ge=1, description="starts from other noise; the smallest matching loss counts")
    lr: float = Field(0.1, gt=0, description="first step of Adam")
    total_variation: float = Field(1e-4, ge=0, description="weight alpha of the total variation")
    derivative: Derivative = Field("automatic", description="derivative of the matching loss")

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find the pixels."""
        problem.budget.plan(self.starts * self.iterations_of_a_start)
        labels, results = labels_for_search(problem), []
        for start in range(self.starts):
            told = labels
            if start and problem.labels is None and labels is not None and problem.simulates_local_steps:
                # Which step a label that was read off belongs to is unknown, and each start supposes something else.
                told = labels[torch.randperm(len(labels), generator=generator)]
            matching = self.matching(problem, told)
            found = self.descend(matching, problem.randn(generator))
            results.append(Outcome(found, None, matching.value([found]), told))
        return min(results, key=lambda result: result.matching_loss)

    @property
    def iterations_of_a_start(self) -> int:
        """Those of the recipe, or as many as are asked for."""
        return self.iterations or ITERATIONS[self.recipe]

    def matching(self, problem: InversionProblem, labels: Tensor | None) -> Matching:
        """The cosine distance of the gradient, or of several local steps that can be simulated."""
        if problem.simulates_local_steps:
            return SimulatedTraining.of_pixels(problem, cosine_distance, labels)
        return match_pixels(problem, self.derivative, cosine_distance, labels)

    def descend(self, matching: Objective, start: Tensor) -> Tensor:
        """The images [N,C,H,W] with the smallest objective among all iterations from ``start``."""
        images, iterations = start.clone().requires_grad_(), self.iterations_of_a_start
        optimizer = torch.optim.Adam([images], lr=self.lr)
        milestones = [iterations * eighths // 8 for eighths in (3, 5, 7)]
        decay = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        best, smallest = start, float("inf")
        for _ in range(iterations):
            distance, (derivative,) = matching([images])
            variation = self.total_variation * total_variation(images)
            (variation_derivative,) = torch.autograd.grad(variation, images)
            if (value := float(distance + variation.detach())) < smallest:
                best, smallest = images.detach().clone(), value
            images.grad = (derivative + variation_derivative).sign()
            optimizer.step()
            decay.step()
            with torch.no_grad():
                images.clamp_(-1, 1)
        return best


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, rows plus columns (anisotropic), of images [N,C,H,W]."""
    rows = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    columns = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    return rows + columns
