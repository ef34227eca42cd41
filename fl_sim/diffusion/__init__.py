"""The denoising diffusion model: network, noise schedule, training loss, sampler, checkpoints.

Honest clients and attacks both build on this package; it imports nothing of the project but ``fl_sim.errors``
and ``fl_sim.registry``.
Notation follows DDPM (Ho et al. 2020, arXiv 2006.11239): ``x0`` is an image in [-1, 1], ``noise`` is epsilon ~ N(0, I),
``timesteps`` are integers in 0..T-1, ``alphas_cumprod`` is the cumulative product of 1 - beta, ``x_t`` is the noisy
image. Batches are [B,C,H,W], timesteps [B].
"""

from fl_sim.diffusion.checkpoint import Checkpoint, read_checkpoint
from fl_sim.diffusion.configuration import ConfigError
from fl_sim.diffusion.diffusers_folder import read_network_config
from fl_sim.diffusion.ema import ema_decays, ema_shares
from fl_sim.diffusion.factory import FACTORY, factory_path, trust, trusted
from fl_sim.diffusion.known_networks import KNOWN_NETWORKS
from fl_sim.diffusion.local_optimizer import LocalOptimizer
from fl_sim.diffusion.lora import LORA, LoRA, adapt
from fl_sim.diffusion.min_snr import min_snr_weights
from fl_sim.diffusion.network import (
    MODEL_CLASSES,
    build_model,
    dropout_of,
    in_channels,
    num_classes,
    outline,
    predict,
    trainable_names,
    unet_config,
)
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
from fl_sim.diffusion.parameters import count_parameters, matching_names, misfit, trainable_parameters
from fl_sim.diffusion.prediction import determines_x0, noise_from_target, target, x0_from_residual
from fl_sim.diffusion.safetensors_file import read_safetensors
from fl_sim.diffusion.sampler import DDIMSampler
from fl_sim.diffusion.training_loss import gradient, gradient_and_loss, loss

__all__ = [
    "FACTORY",
    "KNOWN_NETWORKS",
    "LORA",
    "MODEL_CLASSES",
    "PREDICTION_TYPES",
    "Checkpoint",
    "ConfigError",
    "DDIMSampler",
    "LoRA",
    "LocalOptimizer",
    "adapt",
    "add_noise",
    "add_offset",
    "build_model",
    "build_scheduler",
    "check_network",
    "count_parameters",
    "determines_x0",
    "dropout_of",
    "ema_decays",
    "ema_shares",
    "factory_path",
    "gradient",
    "gradient_and_loss",
    "in_channels",
    "loss",
    "matching_names",
    "min_snr_weights",
    "misfit",
    "noise_from_target",
    "num_classes",
    "num_train_timesteps",
    "outline",
    "predict",
    "read_checkpoint",
    "read_network_config",
    "read_safetensors",
    "scheduler_config",
    "signal_and_noise_scale",
    "target",
    "trainable_names",
    "trainable_parameters",
    "trust",
    "trusted",
    "unet_config",
    "whiten",
    "x0_from_residual",
]
