"""A small network, a schedule and a draw to try them on."""

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from fl_sim import diffusion, network

SCHEDULES: list[dict[str, Any]] = [
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"num_train_timesteps": 3, "trained_betas": [0.1, 0.2, 0.5]},
    {"num_train_timesteps": 1},
    {"num_train_timesteps": 2, "rescale_betas_zero_snr": True},
    {"num_train_timesteps": 10, "rescale_betas_zero_snr": True},
    {"rescale_betas_zero_snr": True},
]
"""Changes to a configuration that make other noise schedules; three of them end in pure noise."""


def tiny_config(**changes: Any) -> dict[str, Any]:
    return network.unet_config(16, block_out_channels=(8, 16), norm_num_groups=4) | changes


def draw(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(batch, 3, 16, 16, generator=generator) * 2 - 1
    return x0, torch.randn(x0.shape, generator=generator), torch.tensor([0, 400, 999])[:batch]


def scheduler(prediction_type: str = "epsilon") -> DDPMScheduler:
    return diffusion.build_scheduler(diffusion.scheduler_config(prediction_type=prediction_type))
