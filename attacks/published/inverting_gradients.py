"""Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053), adapted to diffusion.

With noise and timesteps dictated by the server, the pixels minimise (eq. 4)

    1 - <g(x), g*> / (|g(x)| |g*|) + alpha TV(x),

by Adam on the sign of the derivative, with a step that decays by ten after 3/8, 5/8 and 7/8 of the iterations, and
pixels kept within their range.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Needs, Outcome
from attacks.inversion.gradient_matching import Derivative, Objective, cosine_distance, match_pixels
from attacks.inversion.problem import InversionProblem


class InvertingGradients(Attack):
    """Cosine distance, total variation, Adam on signs; a single start."""

    name: ClassVar[str] = "inverting-gradients"
    needs: ClassVar[Needs] = Needs.NOISE_AND_TIMESTEPS | Needs.GRADIENT | Needs.OWN_SIGNS

    iterations: int = Field(4800, ge=8, description="always to the last one")
    lr: float = Field(0.1, gt=0, description="first step of Adam")
    total_variation: float = Field(1e-4, ge=0, description="weight alpha of the total variation")
    derivative: Derivative = Field("one-sided", description="derivative of the matching loss")

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find the pixels."""
        problem.budget.plan(self.iterations)
        matching = match_pixels(problem, self.derivative, cosine_distance)
        found = self.descend(matching, problem.randn(generator))
        assert problem.timesteps is not None
        return Outcome(found, problem.timesteps, matching.value([found]))

    def descend(self, matching: Objective, start: Tensor) -> Tensor:
        """The images [N,C,H,W] with the smallest objective among all iterations from ``start``."""
        images = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([images], lr=self.lr)
        milestones = [self.iterations * eighths // 8 for eighths in (3, 5, 7)]
        decay = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        best, smallest = start, float("inf")
        for _ in range(self.iterations):
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
