"""Min-SNR weighting of the training loss (Hang et al. 2023, arXiv 2303.09556)."""

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from fl_sim.diffusion.noise_schedule import signal_and_noise_scale


def min_snr_weights(scheduler: DDPMScheduler, timesteps: Tensor, gamma: float, like: Tensor) -> Tensor:
    """w(t) [B,1,1,1] by which a sample's squared error is multiplied, with the type and device of ``like``.

    With SNR = alphas_cumprod / (1 - alphas_cumprod) it is min(SNR, gamma) for ``sample``, min(SNR, gamma) / SNR for
    ``epsilon`` and min(SNR, gamma) / (SNR + 1) for ``v_prediction`` (arXiv 2303.09556, section 3.4), each written so
    that it is finite everywhere. Where the SNR is 0 the weight is 1 for ``epsilon`` and 0 for the others; where the SNR
    is infinite it is ``gamma`` for ``sample`` and 0 for the others. ``timesteps`` may be real, as in
    ``signal_and_noise_scale``.
    """
    signal_scale, noise_scale = signal_and_noise_scale(scheduler, timesteps, like)
    signal, noise = signal_scale.square(), noise_scale.square()
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return (gamma * noise / signal).clamp(max=1)
    if prediction_type == "sample":
        return (signal / noise).clamp(max=gamma)
    return torch.minimum(signal, gamma * noise)
