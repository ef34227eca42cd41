"""Sampling from a diffusion model under the guidance of a gradient (Gu et al., WWW 2024).

"Federated Learning Vulnerabilities: Privacy Attacks with Denoising Diffusion Probabilistic Models". A trained model
makes an image from noise by the reverse process of arXiv 2006.11239 (eq. 7, here over evenly spaced timesteps), and
the mean of every step is moved against the derivative of the matching loss D,

    x_{t-1} = mean_phi(x_t, t) - gamma sigma_t^2 clip(dD/dx_t, -c, c) + sigma_t z ,     z ~ N(0, I).

Nothing is trained and nothing is searched for: there is one evaluation a step. Objective and step were read off a third
party's re-implementation (aidotse/LeakPro); the paper's text was not at hand. As there, D is taken at the estimate
x0hat(x_t) of the image (arXiv 2006.11239, eq. 15), and its derivative goes back through the model; the paper's is said
to take D at the noisy x_t itself. Ours: D is relative to |g*|^2, so that gamma and c, there 100 and 1, do not depend on
the gradient's scale; fewer than T steps; and the x0hat of the smallest D is the result.

Not to be confused with attacks/published/gradient_guided_finetuning.py, which tunes the model's weights.
"""

from typing import ClassVar, Literal

import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from attacks.attack import Attack, Needs, Outcome
from attacks.inversion.gradient_matching import DISTANCES, Derivative, match_pixels
from attacks.inversion.problem import InversionProblem
from attacks.labels.recovery import labels_for_search
from attacks.observation import Observation
from attacks.published.ddim_prior import GLOBAL, check_prior, load_network
from fl_sim import diffusion


class GradientGuidedSampling(Attack):
    """The reverse process of a generative prior, led by the observed gradient."""

    name: ClassVar[str] = "gradient-guided-sampling"
    needs: ClassVar[Needs] = Needs.NOISE_AND_TIMESTEPS | Needs.GRADIENT | Needs.MAGNITUDES

    prior: str = Field(GLOBAL, description="model to sample from: the global one, or the path of a checkpoint")
    steps: int = Field(100, ge=1, description="steps of the reverse process")
    guidance: float = Field(1000.0, ge=0, description="gamma, by which the derivative moves a step's mean")
    clip: float = Field(0.001, gt=0, description="largest entry of the derivative")
    distance: Literal["squared", "cosine"] = Field("squared", description="distance of the gradients")
    derivative: Derivative = Field("automatic", description="derivative of the matching loss")

    @override
    def check(self, observation: Observation) -> None:
        super().check(observation)
        check_prior(self.name, self.prior, observation.circumstances)

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Sample the pixels."""
        labels = labels_for_search(problem)
        matching = match_pixels(problem, self.derivative, DISTANCES[self.distance], labels)
        model, scheduler, taken = load_network(problem, self.prior, labels)
        model.requires_grad_(False)
        timesteps = spaced(scheduler, self.steps)
        problem.budget.plan(len(timesteps))
        x_t, results = problem.randn(generator), []
        for timestep, previous in zip(timesteps, [*timesteps[1:], -1], strict=True):
            x_t.requires_grad_()
            at = torch.full((len(x_t),), timestep, device=x_t.device)
            prediction = diffusion.predict(model, x_t, at, taken)
            x0 = diffusion.x0_from_residual(scheduler, x_t, prediction, torch.zeros_like(x_t), at)
            value, (by_x0,) = matching([x0.detach().requires_grad_()])
            (by_x_t,) = torch.autograd.grad(x0, x_t, by_x0)
            results.append(Outcome(x0.detach(), None, float(value), labels))
            mean, variance = reverse_step(scheduler, x_t.detach(), x0.detach(), timestep, previous)
            guided = mean - self.guidance * variance * by_x_t.clamp(-self.clip, self.clip)
            x_t = guided + variance**0.5 * problem.randn(generator)
        return min(results, key=lambda result: result.matching_loss)


def spaced(scheduler: DDPMScheduler, steps: int) -> list[int]:
    """At most ``steps`` timesteps, evenly spaced and falling from T - 1, at which x_t and target determine x0."""
    last = int(scheduler.config.num_train_timesteps) - 1
    timesteps = torch.linspace(last, 0, min(steps, last + 1)).round().long()
    return [int(timestep) for timestep in timesteps[diffusion.determines_x0(scheduler, timesteps)]]


def reverse_step(
    scheduler: DDPMScheduler, x_t: Tensor, x0: Tensor, timestep: int, previous: int
) -> tuple[Tensor, float]:
    """Mean [N,C,H,W] and variance of x at ``previous``, given x_t and x0 (arXiv 2006.11239, eq. 7).

    ``previous`` = -1 stands for the image itself, where the variance is 0.
    """
    kept = float(scheduler.alphas_cumprod[timestep])
    kept_before = 1.0 if previous < 0 else float(scheduler.alphas_cumprod[previous])
    alpha = kept / kept_before
    mean = (kept_before**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - kept_before) * x_t) / (1 - kept)
    return mean, (1 - kept_before) / (1 - kept) * (1 - alpha)
