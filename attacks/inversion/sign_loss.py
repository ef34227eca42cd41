"""Matching a gradient of which only the signs are known.

Signs are one-bit measurements of a vector: its scale is lost, tensor by tensor, but far more signs than unknowns pin
the rest down (Boufounos and Baraniuk 2008, "1-bit compressive sensing").
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attacks.inversion.gradient_matching import Distance


def sign_floor(temperature: float) -> float:
    """About what ``sign_distance`` is where the signs are right.

    Of normal entries the smallest ones alone leave sqrt(2/pi) (pi^2 / 12) tau^2 = 0.66 tau^2; entries of real gradients
    crowd more around zero: 1.5 to 1.75 tau^2 was measured.
    """
    return 1.7 * temperature**2


def sign_distance(signs: Sequence[Tensor], temperature: float) -> Distance:
    """The logistic loss tau softplus(-m_j / tau), averaged over entries, of the margins m_j = s_j g_j / rms(g_l).

    ``signs`` (-1, 0 or 1) come tensor by tensor, rms(g_l) is of the tensor's own entries. A temperature tau far below 1
    counts little but signs that are wrong. Entries of sign 0 are left out.
    """
    flat = torch.cat([value.reshape(-1) for value in signs])
    sizes = torch.tensor([value.numel() for value in signs], device=flat.device)
    tensor_of = torch.repeat_interleave(torch.arange(len(signs), device=flat.device), sizes)
    known = flat.abs().sum()

    def over_tensor(values: Tensor) -> Tensor:
        """Mean over the tensor that each entry belongs to, [P]."""
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
