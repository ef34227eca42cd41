"""The iterative reconstruction: pixels that the prior takes for images and the classifier for those of a class.

Step 2 of Diff-MI (arXiv 2407.11424). Every iteration takes a step by the prior and one by the classifier. The former,
with its schedule of timesteps and Adamax, is that of Graikos et al. 2022 (arXiv 2206.09012): denoising at t is the
gradient of |e(x_t, t, c) - e|^2 with respect to x0.
"""

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attacks.model_inversion.arguments import Arguments
from attacks.model_inversion.augmentation import Augmentation
from attacks.model_inversion.conditional_prior import ConditionalPrior
from attacks.model_inversion.margin_loss import ClassLoss
from attacks.model_inversion.samplers import ddim
from fl_sim import diffusion

TINY = torch.finfo(torch.float32).tiny
Terms = Literal["both", "prior", "classifier"]
"""Which of the two steps an iteration takes."""


class ImageSearch(Arguments):
    """The numbers of the iterations, and of the sampling that ends them."""

    iterations: int = Field(30, ge=1, description="of a prior step and a classifier step each")
    batch_size: int = Field(64, ge=1, description="images that are searched together, with one t and one norm")
    lr: float = Field(1.0, gt=0, description="Adamax's learning rate, for both steps")
    guidance: float = Field(3.0, ge=0, description="w of classifier-free guidance; 1: none")
    timestep_floor: int = Field(200, ge=1, le=1000, description="t to which the schedule falls")
    timestep_jitter: int = Field(50, ge=0, description="largest random shift of t, either way")
    clip: float = Field(1.25, gt=0, description="largest norm of the classifier's gradient, over the prior's")
    norm_memory: float = Field(0.5, ge=0, lt=1, description="weight of the past in the prior's mean gradient norm")
    final_timestep: int = Field(100, ge=1, le=1000, description="t to which the images are noised in the end")
    final_steps: int = Field(10, ge=1, le=1000, description="of DDIM, from there to images")
    eta: float = Field(1.0, ge=0, le=1, description="of DDIM: 0 deterministic, 1 as noisy as DDPM")
    augmentation: Augmentation = Field(
        Augmentation(copies=4, flip=0.5, brightness=0.2, blur_radius=3, blur_sigma=3, blur_probability=0.5),
        description="of the images that the classifier judges",
    )

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.final_steps > self.final_timestep:
            raise ValueError(f"final_steps = {self.final_steps}: at most final_timestep = {self.final_timestep}")
        return self

    def run(
        self, prior: ConditionalPrior, loss: ClassLoss, labels: Tensor, terms: Terms, seeds: torch.Generator
    ) -> Tensor:
        """Images [N,C,H,W] of the classes ``labels`` int64 [N], ``batch_size`` at a time, by the chosen ``terms``."""
        batches = [self._search(prior, loss, batch, terms, seeds) for batch in labels.split(self.batch_size)]
        return torch.cat(batches)

    def _search(
        self, prior: ConditionalPrior, loss: ClassLoss, labels: Tensor, terms: Terms, generator: torch.Generator
    ) -> Tensor:
        shape = (len(labels), *loss.target.public.shape[1:])

        def randn() -> Tensor:
            return torch.randn(shape, generator=generator).to(labels.device)

        x0 = randn().requires_grad_()
        optimizer = torch.optim.Adamax([x0], lr=self.lr)
        prior_norm: Tensor | None = None
        for iteration in range(self.iterations):
            timestep, noise = self.timestep(iteration, generator), randn()
            if terms != "classifier":
                predicted = prior.noise(_noised(prior, x0, noise, timestep), timestep, labels, self.guidance)
                (gradient,) = torch.autograd.grad((predicted - noise).square().mean(), x0)
                norm = gradient.norm()
                prior_norm = norm if prior_norm is None else torch.lerp(norm, prior_norm, self.norm_memory)
                _step(optimizer, x0, gradient)
            if terms != "prior":
                views = self.augmentation.apply(x0, generator)
                (gradient,) = torch.autograd.grad(loss(views, labels.repeat(self.augmentation.copies)), x0)
                if prior_norm is not None:
                    gradient = gradient * (self.clip * prior_norm / gradient.norm().clamp(min=TINY)).clamp(max=1)
                _step(optimizer, x0, gradient)
        last = self.final_timestep - 1
        x_t = _noised(prior, x0.detach(), randn(), last)
        return ddim(prior, x_t, last, labels, self.final_steps, self.guidance, self.eta, generator)

    def timestep(self, iteration: int, generator: torch.Generator) -> int:
        """t of an iteration, 0..999: falls from 999 towards ``timestep_floor``, in waves, plus the random shift.

        The authors' formula, whose timesteps are 1..1000, less 1.
        """
        left, total = self.iterations - iteration, self.iterations
        wave = left / 1.5 + left / 3 * math.cos(3 * iteration / (10 * math.pi))
        jitter = int(torch.randint(-self.timestep_jitter, self.timestep_jitter + 1, (), generator=generator))
        t = int(wave / total * (1000 - self.timestep_floor) + self.timestep_floor) + jitter
        return min(max(t, 1), 1000) - 1


def _noised(prior: ConditionalPrior, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
    return diffusion.add_noise(prior.scheduler, x0, noise, torch.full((len(x0),), timestep, device=x0.device))


def _step(optimizer: torch.optim.Optimizer, x0: Tensor, gradient: Tensor) -> None:
    x0.grad = gradient
    optimizer.step()
