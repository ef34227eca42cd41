"""The matching loss for a gradient of which only the signs are known.

Signs are one-bit measurements of a vector (Boufounos and Baraniuk 2008, "1-bit compressive sensing"). They lose the
scale of every tensor. There are far more signs than unknowns, so they determine everything else.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attacks.inversion.gradient_matching import Distance


def sign_floor(temperature: float) -> float:
    """1.7 tau^2, about the value of ``sign_distance`` where all signs are right, at temperature tau.

    Normal entries would leave sqrt(2/pi) (pi^2 / 12) tau^2 = 0.66 tau^2. Real gradients have more entries near zero:
    1.5 to 1.75 tau^2 was measured.
    """
    return 1.7 * temperature**2


def sign_distance(signs: Sequence[Tensor], temperature: float) -> Distance:
    """The logistic loss tau softplus(-m_j / tau), averaged over entries, of the margins m_j = s_j g_j / rms(g_l).

    Args:
        signs: s by parameter tensor, each entry -1, 0 or 1; entries of sign 0 are left out. rms(g_l) is the root mean
            square of the entry's own tensor.
        temperature: tau > 0; far below 1 only wrong signs count.
    """
    flat = torch.cat([value.reshape(-1) for value in signs])
    sizes = torch.tensor([value.numel() for value in signs], device=flat.device)
    tensor_of = torch.repeat_interleave(torch.arange(len(signs), device=flat.device), sizes)
    known = flat.abs().sum()

    def over_tensor(values: Tensor) -> Tensor:
        """The mean over each entry's own tensor, [P]."""
        return (values.new_zeros(len(signs)).index_add(0, tensor_of, values) / sizes)[tensor_of]

    def distance(gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        rms = over_tensor(gradient.square()).sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
        normalised = gradient / rms
        margins = flat * normalised
        losses = temperature * nn.functional.softplus(-margins / temperature) * flat.abs()
        slopes = -torch.sigmoid(-margins / temperature) * flat
        derivative = (slopes - over_tensor(slopes * normalised) * normalised) / (rms * known)
        return losses.sum() / known, derivative

    return distance
