"""What an update reveals of the gradient behind it: an estimate of every entry and how uncertain that estimate is.

A gradient that was sent is exact. A weight delta went through an optimiser and was rounded to float32 with the weights;
a defence may have added noise, or kept only some entries. All of that comes down to one standard deviation per entry,
which matching weighs by (attacks/inversion/gradient_matching.py).
"""

import math

import torch
from torch import Tensor

from attacks.observation import Circumstances, Observation

_ARITHMETIC = 1e-7
"""Relative error of an optimiser's own float32 arithmetic."""


def revealed_gradient(observation: Observation, name: str) -> tuple[Tensor, Tensor]:
    """Mean gradient of one parameter and its uncertainty (standard deviation), both float32 in the parameter's shape.

    A sum over clients is divided by their number. Entries about which nothing is revealed are infinitely uncertain.
    Of a defence that leaves signs, those are returned (-1, 0, 1), without uncertainty: they are no estimate.
    """
    circumstances = observation.circumstances
    clients, defence = circumstances.num_clients, circumstances.defence
    update = observation.update[name].double() / clients
    before = observation.weights[name].double()
    if defence is not None and defence.signs:
        signs = update.sign() if circumstances.update == "gradient" else -update.sign()
        return signs.float(), torch.zeros_like(observation.update[name])
    uncertainty = torch.zeros_like(update)
    if defence is not None:
        uncertainty += defence.noise_std / math.sqrt(clients)
        if defence.quantisation_levels is not None:
            uncertainty = torch.hypot(uncertainty, _random_rounding(update, defence.quantisation_levels))
        if defence.sparsified:
            uncertainty[update == 0] = math.inf
    if circumstances.update == "delta":
        uncertainty = (uncertainty.square() + _rounding(observation, name).square()).sqrt()
        update, uncertainty = _before_optimizer(circumstances, update, uncertainty, before)
    if defence is not None and defence.gradient_noise_std:
        uncertainty = torch.hypot(uncertainty, _training_noise(circumstances, defence.gradient_noise_std))
    return update.float(), uncertainty.float()


def _random_rounding(update: Tensor, levels: int) -> Tensor:
    """Standard deviation of rounding at random to multiples of s = max|u| / levels, a scalar.

    Between two multiples, at a share p, it is s sqrt(p (1 - p)): s / sqrt(6) for p anywhere. Where most entries lie far
    below s, p (1 - p) is less than p on average, and that is the mean magnitude seen over s.
    """
    step = update.abs().max() / levels
    mean_share = update.abs().mean() / step.clamp_min(torch.finfo(update.dtype).tiny)
    return step * mean_share.clamp(max=1 / 6).sqrt()


def _training_noise(circumstances: Circumstances, std: float) -> Tensor:
    """Standard deviation of the mean gradient from noise on the gradient of every step and client, a scalar."""
    weights = [1.0]
    if circumstances.local_optimizer is not None:
        weights = momentum_weights(circumstances.local_steps, circumstances.local_optimizer.momentum)
    squares = sum(weight**2 for weight in weights) * circumstances.num_clients
    return torch.tensor(std * math.sqrt(squares) / (sum(weights) * circumstances.num_clients), dtype=torch.float64)


def _rounding(observation: Observation, name: str) -> Tensor:
    """Standard deviation of a mean delta from rounding weights to float32 after each step."""
    circumstances = observation.circumstances
    before, update = observation.weights[name], observation.update[name]
    largest = torch.maximum(before.abs(), (before + update).abs())
    spacing = torch.nextafter(largest, torch.full_like(largest, math.inf)).double() - largest.double()
    return spacing * math.sqrt(circumstances.local_steps / circumstances.num_clients / 12)


def _before_optimizer(
    circumstances: Circumstances, delta: Tensor, uncertainty: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    optimizer = circumstances.local_optimizer
    assert optimizer is not None  # a delta has one, see Circumstances
    if optimizer.name == "adam":
        gradient, uncertainty = invert_adam_step(-delta / optimizer.lr, uncertainty / optimizer.lr, optimizer.eps)
    else:
        size = optimizer.lr * sum(momentum_weights(circumstances.local_steps, optimizer.momentum))
        gradient, uncertainty = -delta / size, uncertainty / size
    return gradient - optimizer.weight_decay * before, uncertainty


def momentum_weights(steps: int, momentum: float) -> list[float]:
    """How much the gradient of step k = 0..K-1 weighs in the sum that K SGD steps subtract, from an empty buffer.

    (1 - mu**(K-k)) / (1 - mu). Dividing a delta by -lr times their sum gives a mean gradient, exact for K = 1.
    """
    return [(1 - momentum ** (steps - k)) / (1 - momentum) for k in range(steps)]


def invert_adam_step(step: Tensor, uncertainty: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradient behind Adam's first step u = g / (|g| + eps) (arXiv 1412.6980, algorithm 1 at t = 1).

    |g| = eps |u| / (1 - |u|): eps, put there against division by zero, gives the magnitudes back. The error grows as
    (|g| + eps)^2 / eps; where |u| cannot be told from 1 the gradient is infinitely uncertain.
    """
    short_of_one = 1 - step.abs()
    uncertainty = uncertainty + _ARITHMETIC
    gradient = eps * step / short_of_one.clamp_min(_ARITHMETIC)
    spread = (gradient.abs() + eps).square() / eps * uncertainty
    return gradient, torch.where(short_of_one > 2 * uncertainty, spread, math.inf)
