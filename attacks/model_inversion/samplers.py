"""Guided samplers of a class-conditional prior: DPM-Solver++, to differentiate through, and DDIM from any timestep."""

from collections.abc import Iterator

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from attacks.model_inversion.conditional_prior import ConditionalPrior


def dpm_solver(
    prior: ConditionalPrior, latents: Tensor, labels: Tensor, steps: int, guidance: float
) -> Iterator[Tensor]:
    """The prediction of x0 in each of ``steps`` steps, then the sample; [B,C,H,W] each, differentiable.

    DPM-Solver++ of order 2, multistep (Lu et al. 2022, arXiv 2211.01095, algorithm 2), at timesteps that are evenly
    spaced. ``latents`` [B,C,H,W] ~ N(0, I), ``labels`` int64 [B].
    """
    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=prior.scheduler.config.num_train_timesteps,
        trained_betas=prior.scheduler.betas.tolist(),
        algorithm_type="dpmsolver++",
        solver_order=2,
    )
    solver.set_timesteps(steps)
    assert len(solver.timesteps) == steps
    x_t = latents
    for timestep in solver.timesteps:
        noise = prior.noise(x_t, int(timestep), labels, guidance)
        x_t = solver.step(noise, timestep, x_t, return_dict=False)[0]
        yield solver.model_outputs[-1]
    yield x_t


@torch.no_grad()
def ddim(
    prior: ConditionalPrior,
    x_t: Tensor,
    start: int,
    labels: Tensor,
    steps: int,
    guidance: float,
    eta: float,
    generator: torch.Generator,
) -> Tensor:
    """Images [B,C,H,W] in [-1, 1] from ``x_t`` [B,C,H,W] at timestep ``start``, in ``steps`` <= start + 1 steps.

    Song et al. 2020, arXiv 2010.02502, eq. 12 and 16: ``eta`` 0 is deterministic, 1 as noisy as DDPM. x0 is clipped to
    [-1, 1] in every step. The timesteps are evenly spaced from ``start`` to 0.
    """
    timesteps = torch.linspace(start, 0, steps).round().long().tolist()
    assert len(set(timesteps)) == steps
    table = prior.scheduler.alphas_cumprod.double()
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        noise = prior.noise(x_t, timestep, labels, guidance)
        now, then = float(table[timestep]), 1.0 if following is None else float(table[following])
        x0 = ((x_t - (1 - now) ** 0.5 * noise) / now**0.5).clamp(-1, 1)
        direction = (x_t - now**0.5 * x0) / (1 - now) ** 0.5
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
        fresh = torch.randn(x_t.shape, generator=generator).to(x_t)
        x_t = then**0.5 * x0 + (1 - then - sigma**2) ** 0.5 * direction + sigma * fresh
    return x_t
