"""The denoising diffusion model: its noise schedule, training loss, sampler.

Honest clients and attacks both build on this package; it imports nothing of the project but ``fl_sim.network`` and
``fl_sim.errors``.
Notation follows DDPM (Ho et al. 2020, arXiv 2006.11239): ``x0`` is an image in [-1, 1], ``noise`` is epsilon ~ N(0, I),
``timesteps`` are integers in 0..T-1, ``alphas_cumprod`` is the cumulative product of 1 - beta, ``x_t`` is the noisy
image. Batches are [B,C,H,W], timesteps [B].
"""

from fl_sim.diffusion.diffusers_folder import read_network_config
from fl_sim.diffusion.diffusion_task import DiffusionTask
from fl_sim.diffusion.known_networks import KNOWN_NETWORKS
from fl_sim.diffusion.min_snr import min_snr_weights
from fl_sim.diffusion.network import predict
from fl_sim.diffusion.network_check import check_network
from fl_sim.diffusion.noise_schedule import (
    PREDICTION_TYPES,
    add_noise,
    build_scheduler,
    num_train_timesteps,
    scheduler_config,
    signal_and_noise_scale,
)
from fl_sim.diffusion.offset_noise import add_offset, whiten
from fl_sim.diffusion.prediction import determines_x0, noise_from_target, target, x0_from_residual
from fl_sim.diffusion.sampler import DDIMSampler
from fl_sim.diffusion.training_loss import gradient, gradient_and_loss, loss

__all__ = [
    "KNOWN_NETWORKS",
    "PREDICTION_TYPES",
    "DDIMSampler",
    "DiffusionTask",
    "add_noise",
    "add_offset",
    "build_scheduler",
    "check_network",
    "determines_x0",
    "gradient",
    "gradient_and_loss",
    "loss",
    "min_snr_weights",
    "noise_from_target",
    "num_train_timesteps",
    "predict",
    "read_network_config",
    "scheduler_config",
    "signal_and_noise_scale",
    "target",
    "whiten",
    "x0_from_residual",
]
