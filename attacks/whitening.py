"""The squared error in a metric in which the end of a search is short.

The weight gradient of a convolution is D^T H (attacks/input_spans.py), and neighbouring pixels of its inputs are alike:
along the directions in which the patches H hardly vary, the high spatial frequencies, an error of D hardly shows in the
squared error, and a search takes long to mend it. Whoever about knows x_t knows H, and can measure errors in units of
the second moments B_l of a patch's places (a factor of the Fisher matrix in K-FAC for convolutions, arXiv 1602.01407):

    D = sum_l w_l <e_l, e_l B_l^-1>,    e_l = g_l - g*_l,

with weights w_l that balance the tensors as in attacks/weighing.py. Far from the solution it has more local minima than
the squared error.
"""

import torch
from torch import Tensor

from attacks.layer_inputs import convolution_inputs
from attacks.matching import Distance
from attacks.problem import InversionProblem
from attacks.weighing import balanced_weights, noise_floor

_DAMPING = 0.1
"""Added to the second moments, in parts of their mean."""
_EXACT = 1e-5
"""Matching loss that noise may leave. With more, directions along which inputs hardly vary are best left alone."""


def can_be_whitened(problem: InversionProblem) -> bool:
    """Whether all of the gradient was revealed, exactly or nearly so."""
    revealed = all(deviation.isfinite().all() for deviation in problem.uncertainty.values())
    return revealed and problem.scale_known and not problem.noisy and noise_floor(problem, 0.0) < _EXACT


def whitened_squared_error(problem: InversionProblem, x_t: Tensor, timesteps: Tensor, balance: float) -> Distance:
    """The D above, 1 for no gradient at all, for noisy images near ``x_t`` [N,C,H,W] at ``timesteps`` int64 [N]."""
    with torch.no_grad():
        inputs = convolution_inputs(problem.model, x_t, timesteps)
    metrics = [_metric(value, inputs.get(name)) for name, value in problem.gradient.items()]
    roots = {
        name: value if metric is None else (value.flatten(2) @ torch.linalg.cholesky(metric)).view_as(value)
        for (name, value), metric in zip(problem.gradient.items(), metrics, strict=True)
    }
    weights = balanced_weights(roots, problem.uncertainty, balance)
    sizes = [value.numel() for value in problem.gradient.values()]

    def distance(gradient: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        error = gradient - observed
        measured = [
            piece if metric is None else (piece.view(-1, len(metric)) @ metric).view(-1)
            for piece, metric in zip(error.split(sizes), metrics, strict=True)
        ]
        derivative = weights * torch.cat(measured)
        return error @ derivative, 2 * derivative

    return distance


def _metric(gradient: Tensor, inputs: Tensor | None) -> Tensor | None:
    """B^-1 [k,k] for the inputs [P, C k] of a convolution with weights [O,C,height,width], k = height width."""
    if inputs is None or gradient[0, 0].numel() == 1:
        return None
    patches = inputs.reshape(-1, gradient[0, 0].numel()).double()
    moments = patches.T @ patches
    damping = _DAMPING * moments.diagonal().mean() * torch.eye(len(moments), device=moments.device)
    inverse = torch.linalg.inv(moments + damping)
    return (inverse / inverse.diagonal().mean()).to(gradient.dtype)
