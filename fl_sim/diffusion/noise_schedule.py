"""The noise schedule: how much of an image and how much noise is in x_t (arXiv 2006.11239, eq. 4).

x_t = sqrt(alphas_cumprod[t]) x0 + sqrt(1 - alphas_cumprod[t]) noise
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fl_sim.network.configuration import ConfigError, cached_by_value, from_config

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
"""What a scheduler's configuration may name as the network's target (fl_sim/diffusion/prediction.py)."""


MOST_TIMESTEPS = 100_000
"""T of the longest noise schedule: a hundred times DDPM's."""


class ScheduleLimits(BaseModel):
    """How long a noise schedule a configuration may describe; every timestep takes memory."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    num_train_timesteps: int = Field(1000, ge=1, le=MOST_TIMESTEPS)
    trained_betas: list[float] | None = Field(None, max_length=MOST_TIMESTEPS)
    beta_start: float = 0.0
    beta_end: float = 0.0


def scheduler_config(num_train_timesteps: int = 1000, prediction_type: str = "epsilon") -> dict[str, Any]:
    """Configuration of a DDPM noise schedule with linear beta from 1e-4 to 0.02 (arXiv 2006.11239, section 4)."""
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": num_train_timesteps,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction_type": prediction_type,
    }


def build_scheduler(config: Mapping[str, Any]) -> DDPMScheduler:
    """Build the DDPM noise schedule that ``config`` describes.

    Raises:
        ConfigError: if ``_class_name`` is there and is not DDPMScheduler, the prediction type is unknown, diffusers
            refuses the configuration, or it makes other than T betas in 0..1.
    """
    name = config.get("_class_name", "DDPMScheduler")
    if name != "DDPMScheduler":
        raise ConfigError(f"scheduler._class_name {name!r} is not allowed; allowed: DDPMScheduler")
    scheduler = from_config(DDPMScheduler, config, "scheduler", ScheduleLimits)
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        allowed = ", ".join(PREDICTION_TYPES)
        raise ConfigError(f"prediction_type {scheduler.config.prediction_type!r} is unknown; allowed: {allowed}")
    steps, betas = scheduler.config.num_train_timesteps, scheduler.betas
    if len(betas) != steps or not steps:
        raise ConfigError(
            f"scheduler has {len(betas)} betas for num_train_timesteps = {steps}; allowed: as many, from 1"
        )
    if not bool(((betas >= 0) & (betas <= 1)).all()):  # refuses NaN too
        least, largest = betas.aminmax()
        raise ConfigError(f"scheduler's betas go from {least:.3g} to {largest:.3g}; allowed: 0 to 1")
    return scheduler


@cached_by_value
def num_train_timesteps(config: Mapping[str, Any]) -> int:
    """T of the noise schedule that ``config`` describes; ConfigError as in ``build_scheduler``."""
    return int(build_scheduler(config).config.num_train_timesteps)


def signal_and_noise_scale(scheduler: DDPMScheduler, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alphas_cumprod[t]) and sqrt(1 - alphas_cumprod[t]), each [B,1,1,1], with the type and device of ``like``.

    Between two integers alphas_cumprod is taken to be linear, so that a search may relax t to a real number in 0..T-1.

    >>> scheduler = build_scheduler(scheduler_config(num_train_timesteps=1000))
    >>> signal, noise = signal_and_noise_scale(scheduler, torch.tensor([0, 500, 999]), torch.empty(3, 3, 16, 16))
    >>> signal.flatten(), noise.flatten()
    (tensor([0.9999, 0.2789, 0.0064]), tensor([0.0100, 0.9603, 1.0000]))
    """
    table = scheduler.alphas_cumprod.to(device=like.device, dtype=torch.float64)
    alphas_cumprod = _interpolate(table, timesteps) if timesteps.is_floating_point() else table[timesteps]
    signal, noise = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
    return _broadcast(signal, like).to(like.dtype), _broadcast(noise, like).to(like.dtype)


def _interpolate(table: Tensor, position: Tensor) -> Tensor:
    below = position.detach().floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (position - below).to(table.dtype))


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = sqrt(alphas_cumprod) x0 + sqrt(1 - alphas_cumprod) noise (arXiv 2006.11239, eq. 4).

    ``x0``, ``noise`` and x_t are [B,C,H,W], ``timesteps`` [B].
    """
    signal_scale, noise_scale = signal_and_noise_scale(scheduler, timesteps, x0)
    return signal_scale * x0 + noise_scale * noise
