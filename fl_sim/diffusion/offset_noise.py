"""Offset noise: noise whose mean varies from channel to channel, so that a network learns bright and dark images.

In every channel of every sample it is e + offset * d, with e ~ N(0, I) over the pixels and one d ~ N(0, 1). Source: N.
Guttenberg, "Diffusion with Offset Noise", 2023; ``--noise_offset`` in the training scripts of diffusers.
"""

import math

import torch
from torch import Tensor


def add_offset(noise: Tensor, offset: float, generator: torch.Generator) -> Tensor:
    """Offset noise from standard normal ``noise`` [B,C,H,W]; ``generator`` is on the CPU, and unused for offset 0."""
    if offset == 0:
        return noise
    return noise + offset * torch.randn(*noise.shape[:2], 1, 1, generator=generator).to(noise.device)


def whiten(noise: Tensor, offset: float) -> Tensor:
    """A linear map of ``noise`` [B,C,H,W] that makes offset noise standard normal.

    The covariance of a channel with n pixels is I + offset^2 1 1^T. Its largest eigenvalue, 1 + n offset^2, belongs to
    the channel's mean; all others are 1.
    """
    if offset == 0:
        return noise
    pixels = noise[0, 0].numel()
    return noise - noise.mean(dim=(2, 3), keepdim=True) * (1 - 1 / math.sqrt(1 + pixels * offset**2))
