"""What an update says of the gradient behind it: an estimate of every entry, with its standard deviation.

A gradient that was sent is exact. A weight delta went through an optimiser and was rounded to float32 with the weights.
What crossed the wire in 16 bits was rounded to them.
A defence may have added noise, or sent only some of the entries. All of these become one standard deviation per entry,
by which matching weighs the entry (attacks/inversion/entry_weights.py).
"""

import math

import torch
from torch import Tensor

from attacks.observation import Circumstances, Observation
from fl_sim import network

FLOAT32_ERROR = 1e-7
"""Relative error of an optimiser's own float32 arithmetic."""


def estimate_gradient(observation: Observation, name: str) -> tuple[Tensor, Tensor]:
    """Estimate of the mean gradient of one parameter, and its standard deviation, each float32 in its shape.

    A sum over clients is divided by their number. The deviation is infinite where the update says nothing about an
    entry. Of a defence that sends signs the signs are returned, -1, 0 or 1, with deviation 0: they are no estimate.
    """
    circumstances = observation.circumstances
    clients, defence = circumstances.num_clients, circumstances.defence
    update = observation.update[name].double() / clients
    before = observation.weights[name].double()
    if defence is not None and defence.signs:
        signs = update.sign() if circumstances.update == "gradient" else -update.sign()
        return signs.float(), torch.zeros_like(observation.update[name])
    std = torch.zeros_like(update)
    if defence is not None:
        std += defence.noise_std / math.sqrt(clients)
        if defence.quantisation_levels is not None:
            std = torch.hypot(std, _random_rounding(update, defence.quantisation_levels))
        if defence.sparsified:
            std[update == 0] = math.inf
    if circumstances.dtype != "float32":
        kind = getattr(torch, circumstances.dtype)
        sent = update if circumstances.update == "gradient" else before + update
        std = torch.hypot(std, _spacing(sent.to(kind), kind) / math.sqrt(12 * clients))
    if circumstances.update == "delta":
        std = (std.square() + _rounding(observation, name).square()).sqrt()
        update, std = _before_optimizer(circumstances, update, std, before)
    if defence is not None and defence.gradient_noise_std:
        std = torch.hypot(std, _training_noise(circumstances, defence.gradient_noise_std))
    return update.float(), std.float()


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
        weights = step_weights(circumstances)
    squares = sum(weight**2 for weight in weights) * circumstances.num_clients
    return torch.tensor(std * math.sqrt(squares) / (sum(weights) * circumstances.num_clients), dtype=torch.float64)


def _rounding(observation: Observation, name: str) -> Tensor:
    """Standard deviation of a mean delta from rounding weights to float32 after each step."""
    circumstances = observation.circumstances
    before, update = observation.weights[name], observation.update[name]
    largest = torch.maximum(before.abs(), (before + update).abs())
    return _spacing(largest, torch.float32) * math.sqrt(circumstances.local_steps / circumstances.num_clients / 12)


def _spacing(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance to the next larger magnitude that ``dtype`` has, float64: an error of rounding is up to half of it.

    A relative 2^-10 for float16 and 2^-7 for bfloat16 at most; subnormal numbers lie equally far apart.
    """
    kind = torch.finfo(dtype)
    _, exponent = torch.frexp(values.double().abs().clamp_min(kind.smallest_normal))
    return torch.ldexp(torch.full_like(values, kind.eps, dtype=torch.float64), exponent - 1)


def _before_optimizer(
    circumstances: Circumstances, delta: Tensor, std: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    optimizer = circumstances.local_optimizer
    assert optimizer is not None  # a delta has one, see Circumstances
    if optimizer.adaptive and circumstances.local_steps > 1:
        size = optimizer.lr * circumstances.local_steps
        decay = 0.0 if optimizer.name == "adam" else optimizer.weight_decay
        return -delta / size - decay * before, std / size
    if optimizer.name == "adamw":
        decayed = before.float() * (1 - optimizer.lr * optimizer.weight_decay)  # as torch rounds it
        return invert_adam_step((decayed - before - delta) / optimizer.lr, std / optimizer.lr, optimizer.eps)
    if optimizer.name == "adam":
        gradient, std = invert_adam_step(-delta / optimizer.lr, std / optimizer.lr, optimizer.eps)
    else:
        size = optimizer.lr * sum(step_weights(circumstances))
        gradient, std = -delta / size, std / size
    return gradient - optimizer.weight_decay * before, std


def step_weights(circumstances: Circumstances) -> list[float]:
    """w_k of the local SGD steps k = 0..K-1 in the update: delta = -lr sum_k w_k g_k.

    The momentum buffer starts empty, so j steps with momentum mu subtract sum_k (1 - mu^(j-k)) / (1 - mu) lr g_k. A
    moving average of the weights is a mean over j = 1..K, with the shares of ``ema_shares``. So -delta / (lr sum_k w_k)
    is a weighted mean of the steps' gradients, and for K = 1 the gradient itself.
    """
    assert circumstances.local_optimizer is not None
    steps, momentum = circumstances.local_steps, circumstances.local_optimizer.momentum
    shares = network.ema_shares(circumstances.ema_decay, steps)
    return [
        sum(share * (1 - momentum ** (j - k)) / (1 - momentum) for j, share in enumerate(shares, 1) if j > k)
        for k in range(steps)
    ]


def invert_adam_step(step: Tensor, std: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """g = eps u / (1 - |u|), the gradient behind Adam's first step u = g / (|g| + eps), and its standard deviation.

    Source: arXiv 1412.6980, algorithm 1 at t = 1. Adam's eps, meant to avoid a division by zero, gives the magnitudes
    away. An error of u grows by (|g| + eps)^2 / eps. Where |u| cannot be told from 1 the deviation is infinite.
    """
    short_of_one = 1 - step.abs()
    std = std + FLOAT32_ERROR
    gradient = eps * step / short_of_one.clamp_min(FLOAT32_ERROR)
    spread = (gradient.abs() + eps).square() / eps * std
    return gradient, torch.where(short_of_one > 2 * std, spread, math.inf)
