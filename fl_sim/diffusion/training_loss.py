"""The DDPM training loss (arXiv 2006.11239, eq. 14) and its gradient."""

from diffusers import DDPMScheduler
from torch import Tensor, nn

from fl_sim.diffusion.min_snr import min_snr_weights
from fl_sim.diffusion.network import predict
from fl_sim.diffusion.noise_schedule import add_noise
from fl_sim.diffusion.prediction import target
from fl_sim.network.parameters import weight_gradient


def loss(
    model: nn.Module,
    scheduler: DDPMScheduler,
    x0: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    labels: Tensor | None = None,
    min_snr_gamma: float | None = None,
) -> Tensor:
    """L = mean(w(t) (model(x_t, t) - target)^2) over batch and pixels (arXiv 2006.11239, eq. 14); a scalar.

    ``x0`` and ``noise`` are [B,C,H,W], ``timesteps`` [B], ``labels`` int64 [B] where the network takes them. The target
    is the noise, or that of another prediction type. w(t) is 1, or ``min_snr_weights`` for ``min_snr_gamma`` (arXiv
    2303.09556).
    """
    x_t = add_noise(scheduler, x0, noise, timesteps)
    prediction, known_target = predict(model, x_t, timesteps, labels), target(scheduler, x0, noise, timesteps)
    if min_snr_gamma is None:
        return nn.functional.mse_loss(prediction, known_target)
    weights = min_snr_weights(scheduler, timesteps, min_snr_gamma, x_t)
    return (weights * (prediction - known_target).square()).mean()


def gradient(
    model: nn.Module,
    scheduler: DDPMScheduler,
    x0: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    labels: Tensor | None = None,
    min_snr_gamma: float | None = None,
) -> dict[str, Tensor]:
    """dL/dw of ``loss`` by trainable parameter's name; the model's ``.grad`` is untouched."""
    return gradient_and_loss(model, scheduler, x0, noise, timesteps, labels, min_snr_gamma)[0]


def gradient_and_loss(
    model: nn.Module,
    scheduler: DDPMScheduler,
    x0: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    labels: Tensor | None = None,
    min_snr_gamma: float | None = None,
) -> tuple[dict[str, Tensor], float]:
    """``gradient``, and the loss itself."""
    value = loss(model, scheduler, x0, noise, timesteps, labels, min_snr_gamma)
    return weight_gradient(model, value), value.item()
