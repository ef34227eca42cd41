"""GIDM, "Gradient Inversion of Federated Diffusion Models" (Huang et al. 2024, arXiv 2405.20380).

Noise and timesteps are known. Phase 1 keeps the search among the images that a trained diffusion model can make: it
looks for a latent z such that G(z) has the observed gradient,

    min_z |grad_theta L(G(z), noise, t) - g*|^2 .

Phase 2 starts at G(z*) and fine-tunes pixels under the same objective. Both use Adam and the plain squared error. L is
the loss of arXiv 2006.11239, eq. 14 or its like for another prediction type, of images noised by its eq. 4; G is the
sampler of arXiv 2010.02502, eq. 12. Objective and published recipe are those of the authors' code
(github.com/GillHuang-Xtler/GIDM_diffusion_inversion: closure() of src/diffusion_inversion.py; run.py); the paper's own
equation numbers are not given here, because its text was not at hand to check them against.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from attacks.attack import Attack, Needs, Outcome
from attacks.inversion.adam import adam_search
from attacks.inversion.gradient_matching import Derivative, GradientMatching, Objective, match_pixels
from attacks.inversion.problem import InversionProblem
from attacks.labels.recovery import labels_for_search
from attacks.observation import Observation
from attacks.published.ddim_prior import GLOBAL, check_prior, load_prior, prior_memory
from fl_sim.diffusion import DDIMSampler


@dataclass(frozen=True)
class Phases:
    """How the two phases are searched; ``solved_below`` None: always to the last iteration."""

    sampler_steps: int
    latent_iterations: int
    pixel_iterations: int
    lr: float
    solved_below: float | None


RECIPES = {
    "published": Phases(sampler_steps=16, latent_iterations=2501, pixel_iterations=5001, lr=0.01, solved_below=None),
    "short": Phases(sampler_steps=8, latent_iterations=100, pixel_iterations=1000, lr=0.1, solved_below=1e-8),
}


class GIDM(Attack):
    """Latent search under a generative prior, then pixels."""

    name: ClassVar[str] = "gidm"
    needs: ClassVar[Needs] = Needs.NOISE_AND_TIMESTEPS | Needs.GRADIENT | Needs.MAGNITUDES

    recipe: Literal["short", "published"] = Field(
        "short", description="the paper's iterations, or fewer, with a larger step, that stop early"
    )
    phases: Literal["both", "latent", "pixels"] = Field("both", description="one phase alone, for ablation")
    latent_iterations: int | None = Field(None, ge=1, description="of phase 1, in place of the recipe's")
    pixel_iterations: int | None = Field(None, ge=1, description="of phase 2, in place of the recipe's")
    prior: str = Field(GLOBAL, description="model behind G: the global one that was sent, or the path of a checkpoint")
    derivative: Derivative = Field("automatic", description="derivative of the matching loss")

    @property
    def schedule(self) -> Phases:
        """The recipe, with the iterations that are given in place of its own."""
        recipe = RECIPES[self.recipe]
        return replace(
            recipe,
            latent_iterations=self.latent_iterations or recipe.latent_iterations,
            pixel_iterations=self.pixel_iterations or recipe.pixel_iterations,
        )

    @override
    def further_memory(self, observation: Observation) -> float:
        if self.phases == "pixels":
            return 0.0
        return prior_memory(self.prior, observation.circumstances, self.schedule.sampler_steps)

    @override
    def check(self, observation: Observation) -> None:
        super().check(observation)
        if self.prior != GLOBAL or self.phases != "pixels":
            check_prior(self.name, self.prior, observation.circumstances)

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find the pixels."""
        labels = labels_for_search(problem)
        matching = match_pixels(problem, self.derivative, labels=labels)
        found = self.two_phases(matching, [problem.randn(generator)], labels)
        return Outcome(found[0], None, matching.value(found), labels)

    def two_phases(
        self, matching: GradientMatching, start: Sequence[Tensor], labels: Tensor | None = None
    ) -> list[Tensor]:
        """The unknowns that the chosen phases find: images [N,C,H,W], then whatever else ``matching`` is about.

        The first of ``start`` is z, or the pixels themselves if phase 1 is left out; the others are in both phases.
        ``labels`` int64 [N] are those of the images, where the network takes them.
        """
        recipe, unknowns = self.schedule, list(start)
        matching.problem.budget.plan(recipe.latent_iterations + recipe.pixel_iterations)
        # Adam's eps belongs to the paper's plain sum of squares; the distance here is that sum over |g*|^2.
        eps = float(1e-8 / matching.observed.square().sum())
        if self.phases != "pixels":
            prior = load_prior(matching.problem, self.prior, recipe.sampler_steps, labels)
            unknowns = adam_search(
                through_prior(matching, prior), unknowns, recipe.latent_iterations, recipe.lr, eps, recipe.solved_below
            )
            with torch.no_grad():
                # An untrained prior makes images far outside their range, from where Adam's small steps never return.
                unknowns[0] = prior(unknowns[0]).clamp(-1, 1)
        if self.phases != "latent":
            unknowns = adam_search(matching, unknowns, recipe.pixel_iterations, recipe.lr, eps, recipe.solved_below)
        return unknowns


def through_prior(matching: GradientMatching, prior: DDIMSampler) -> Objective:
    """``matching`` with its first unknown, the images, replaced by latents."""

    def objective(unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        latents, *others = unknowns
        images = prior(latents)
        value, (derivative, *rest) = matching([images.detach().requires_grad_(), *others])
        return value, [*torch.autograd.grad(images, latents, grad_outputs=derivative), *rest]

    return partial(matching.problem.evaluate, objective)
