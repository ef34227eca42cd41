"""The error of a gradient as the error of the derivatives with respect to layers' outputs, for r at a known x_t.

The weight gradient of a convolution is D^T H (attacks/residual/subspace_init.py). Patches H of natural inputs are much
alike, so that a squared error of the gradient hardly shows an error of D along most directions, and a search for r
takes long to remove it. Where x_t is held H is known, and the part of D that shows in G = D^T H follows by regularised
least squares:

    D^T = G H^T (H H^T + damping m I)^-1,    m = mean eigenvalue of H H^T that is not zero by shape.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Metric = Callable[[Tensor], Tensor]
"""From an error e [O,K] of a gradient to e B, with the positive matrix B [K,K] of which <e, e B> is the error of D."""


def output_metric(inputs: Tensor, damping: float) -> Metric:
    """B = H^T (H H^T + damping m I)^-2 H of inputs H [P,K], by whichever of P and K is smaller."""
    positions, width = inputs.shape
    wide = positions < width
    inputs = inputs.detach()
    gram = inputs.double() @ inputs.double().T if wide else inputs.double().T @ inputs.double()
    shift = float(damping * gram.diagonal().mean()) or 1.0  # inputs that are zero say nothing
    inverse = torch.linalg.inv(gram + shift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    if wide:
        core = (inverse @ inverse).to(inputs.dtype)
        return lambda error: ((error @ inputs.T) @ core) @ inputs
    core = (inverse @ inverse @ gram).to(inputs.dtype)
    return lambda error: error @ core
