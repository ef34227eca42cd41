"""What the network is trained to predict, and how image and noise follow from such a target.

With a = sqrt(alphas_cumprod[t]), s = sqrt(1 - alphas_cumprod[t]) and x_t = a x0 + s noise (arXiv 2006.11239, eq. 4):

    prediction type   target             x0 from x_t and target   noise from x_t and target
    epsilon           noise              (x_t - s target) / a     target
    sample            x0                 target                   (x_t - a target) / s
    v_prediction      v = a noise - s x0  a x_t - s target         s x_t + a target

epsilon: arXiv 2006.11239, eq. 14 and 15. v: Salimans and Ho 2022, arXiv 2202.00512, section 4 and appendix D.
"""

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from fl_sim.diffusion.noise_schedule import signal_and_noise_scale


def target(scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network is trained to predict, [B,C,H,W], from ``x0`` and ``noise`` [B,C,H,W] and ``timesteps`` [B].

    ``epsilon``: the noise (arXiv 2006.11239, eq. 14); ``sample``: x0; ``v_prediction``: v = sqrt(alphas_cumprod) noise
    - sqrt(1 - alphas_cumprod) x0 (arXiv 2202.00512, section 4).
    """
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    signal_scale, noise_scale = signal_and_noise_scale(scheduler, timesteps, x0)
    return signal_scale * noise - noise_scale * x0


def x0_from_residual(
    scheduler: DDPMScheduler, x_t: Tensor, prediction: Tensor, residual: Tensor, timesteps: Tensor
) -> Tensor:
    """x0 from x_t and target = prediction - residual, by the table on top of this file; all [B,C,H,W].

    epsilon: arXiv 2006.11239, eq. 15; v: arXiv 2202.00512, section 4. Where x_t and target do not determine x0
    (``determines_x0``), the image is 0, a plain grey.
    """
    known_target = prediction - residual
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "sample":
        return known_target
    signal_scale, noise_scale = signal_and_noise_scale(scheduler, timesteps, x_t)
    if prediction_type == "epsilon":
        visible = signal_scale > 0
        return torch.where(visible, (x_t - noise_scale * known_target) / torch.where(visible, signal_scale, 1.0), 0.0)
    return signal_scale * x_t - noise_scale * known_target


def noise_from_target(scheduler: DDPMScheduler, x_t: Tensor, known_target: Tensor, timesteps: Tensor) -> Tensor:
    """The noise from x_t and the target, by the table on top of this file; all [B,C,H,W]; affine in the target.

    v: arXiv 2202.00512, appendix D. For ``sample`` it divides by sqrt(1 - alphas_cumprod), which must not be 0.
    """
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return known_target
    signal_scale, noise_scale = signal_and_noise_scale(scheduler, timesteps, x_t)
    if prediction_type == "sample":
        return (x_t - signal_scale * known_target) / noise_scale
    return noise_scale * x_t + signal_scale * known_target


def determines_x0(scheduler: DDPMScheduler, timesteps: Tensor) -> Tensor:
    """Whether x_t and the target determine x0 at each of ``timesteps`` int64 [N]; bool [N], on the CPU.

    They do not where the signal-to-noise ratio is 0 and the target is the noise (Lin et al. 2023, arXiv 2305.08891).
    """
    signal = scheduler.alphas_cumprod[timesteps.cpu()] > 0
    return signal if scheduler.config.prediction_type == "epsilon" else torch.ones_like(signal)
