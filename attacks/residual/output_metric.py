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
    """B = F F^T with F = H^T (H H^T + damping m I)^-1, or a narrower F, of inputs H [P,K].

    Applied as two factors, of which each has the square root of B's range of values: float32 holds that.
    """
    positions, width = inputs.shape
    wide, exact = positions < width, inputs.detach().double()
    gram = exact @ exact.T if wide else exact.T @ exact
    shift = float(damping * gram.diagonal().mean()) or 1.0  # inputs that are zero say nothing
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    factor = exact.T @ (vectors / (values + shift)) if wide else vectors * (values.sqrt() / (values + shift))
    factor = factor.to(inputs.dtype)
    return lambda error: (error @ factor) @ factor.T
