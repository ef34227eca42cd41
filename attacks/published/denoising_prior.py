"""A trained diffusion model as prior knowledge of images, asked at one timestep: which noise is in this picture?"""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from attacks.inversion.problem import InversionProblem
from attacks.published.ddim_prior import load_network
from fl_sim import diffusion


@dataclass(frozen=True)
class DenoisingPrior:
    """A diffusion model with its noise schedule; ``label`` int64 [1] is what it is told, where it takes labels."""

    model: nn.Module
    scheduler: DDPMScheduler
    label: Tensor | None = None

    @property
    def timesteps(self) -> int:
        """T of the noise schedule."""
        return int(self.scheduler.config.num_train_timesteps)

    def add_noise(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_t [1,C,H,W] of ``x0`` and ``noise`` [1,C,H,W] (arXiv 2006.11239, eq. 4)."""
        return diffusion.add_noise(self.scheduler, x0, noise, self._at(timestep, x0))

    def noise(self, x_t: Tensor, timestep: int) -> Tensor:
        """The noise e(x_t, t) [1,C,H,W] that the model sees in ``x_t`` [1,C,H,W]; differentiable."""
        at = self._at(timestep, x_t)
        return diffusion.noise_from_target(self.scheduler, x_t, self._prediction(x_t, at), at)

    def x0(self, x_t: Tensor, timestep: int) -> Tensor:
        """The image [1,C,H,W] that the model sees in ``x_t`` (arXiv 2006.11239, eq. 15); differentiable."""
        at = self._at(timestep, x_t)
        prediction = self._prediction(x_t, at)
        return diffusion.x0_from_residual(self.scheduler, x_t, prediction, torch.zeros_like(prediction), at)

    def step(self, x_t: Tensor, x0: Tensor, timestep: int, following: int, fresh: Tensor) -> Tensor:
        """x at timestep ``following`` from ``x_t`` and a prediction of x0, all [1,C,H,W]; -1: x0 itself.

        Ancestral sampling between any two timesteps: arXiv 2010.02502, eq. 12 and 16 with eta = 1, which is DDPM's own
        step where they are neighbours. ``fresh`` ~ N(0, I).
        """
        if following < 0:
            return x0
        table = self.scheduler.alphas_cumprod.double()
        now, then = float(table[timestep]), float(table[following])
        sigma = ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
        direction = (x_t - now**0.5 * x0) / (1 - now) ** 0.5
        return then**0.5 * x0 + max(1 - then - sigma**2, 0.0) ** 0.5 * direction + sigma * fresh

    def schedule(self, first: int, steps: int) -> list[int]:
        """At most ``steps`` evenly spaced timesteps from ``first`` down to 0, those left out that hide the image."""
        spaced = torch.linspace(first, 0, min(steps, first + 1)).round().long()
        return spaced[diffusion.determines_x0(self.scheduler, spaced)].tolist()

    def _prediction(self, x_t: Tensor, at: Tensor) -> Tensor:
        return diffusion.predict(self.model, x_t, at, self.label)

    def _at(self, timestep: int, like: Tensor) -> Tensor:
        return torch.full((len(like),), timestep, device=like.device)


def load_denoising_prior(problem: InversionProblem, source: str, label: Tensor | None) -> DenoisingPrior:
    """The prior that ``source`` names: ``global``, or the path of a checkpoint; its weights are frozen.

    ``label`` int64 [1] is the image's, where the attacked network takes labels; a prior may do without.

    Raises:
        AttackError: if the checkpoint cannot be read or makes images of another shape than the problem's.
    """
    model, scheduler, told = load_network(problem, source, label, images=1)
    return DenoisingPrior(model.requires_grad_(False), scheduler, told)
