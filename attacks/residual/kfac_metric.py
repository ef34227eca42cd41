"""The squared error in a metric in which the end of a search is short.

The weight gradient of a convolution is D^T H (attacks/residual/subspace_init.py), and neighbouring pixels of its inputs are alike:
along the directions in which the patches H hardly vary, the high spatial frequencies, an error of D hardly shows in the
squared error, and a search takes long to mend it. Whoever about knows x_t knows H, and can measure errors in units of
the second moments B_l of a patch's places (a factor of the Fisher matrix in K-FAC for convolutions, arXiv 1602.01407):

    D = sum_l w_l <e_l, e_l B_l^-1>,    e_l = g_l - g*_l,

with weights w_l that balance the tensors as in attacks/inversion/entry_weights.py. Far from the solution it has more local minima than
the squared error.
"""

import torch
from torch import Tensor

from attacks.inversion.entry_weights import balanced_weights, noise_floor
from attacks.inversion.gradient_matching import Distance
from attacks.inversion.problem import InversionProblem
from attacks.residual.conv_inputs import of_convolution_inputs

_DAMPING = 0.1
"""Added to the second moments, in parts of their mean."""
_EXACT = 1e-5
"""Matching loss that noise may leave. With more, directions along which inputs hardly vary are best left alone."""


def can_be_whitened(problem: InversionProblem) -> bool:
    """Whether what was sent is the gradient at the weights sent, of a known scale, and exact or nearly so."""
    revealed = all(deviation.isfinite().all() for deviation in problem.uncertainty.values())
    return revealed and problem.scale_known and not problem.noisy and noise_floor(problem, 0.0) < _EXACT


def whitened_squared_error(problem: InversionProblem, x_t: Tensor, timesteps: Tensor, balance: float) -> Distance:
    """The D above, 1 for no gradient at all, for noisy images near ``x_t`` [N,C,H,W] at ``timesteps`` int64 [N]."""

    def metric_of(name: str, inputs: Tensor) -> Tensor | None:
        return _metric(inputs, problem.gradient[name][0, 0].numel())

    with torch.no_grad():
        metrics = of_convolution_inputs(problem.model, x_t, timesteps, problem.gradient, metric_of)
    measured = {
        name: value if (metric := metrics.get(name)) is None else _times(value, torch.linalg.cholesky(metric))
        for name, value in problem.gradient.items()
    }
    roots = balanced_weights(measured, problem.uncertainty, balance).sqrt()

    def distance(gradient: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        error = roots * (gradient - observed)
        pieces = error.split([value.numel() for value in problem.gradient.values()])
        derivative = torch.cat(
            [
                piece if (metric := metrics.get(name)) is None else _times(piece, metric)
                for name, piece in zip(problem.gradient, pieces, strict=True)
            ]
        )
        return error @ derivative, 2 * roots * derivative

    return distance


def _times(values: Tensor, matrix: Tensor) -> Tensor:
    """Every patch of k values times a matrix [k,k], in the shape that they came in."""
    return (values.reshape(-1, len(matrix)) @ matrix).view_as(values)


def _metric(inputs: Tensor, places: int) -> Tensor | None:
    """B^-1 [k,k], of mean 1 on its diagonal, for the inputs [P, C k] of a convolution; None if they say nothing."""
    patches = inputs.reshape(-1, places).double()
    moments = patches.T @ patches
    mean = moments.diagonal().mean()
    if places == 1 or mean == 0:
        return None
    inverse = torch.linalg.inv(moments + _DAMPING * mean * torch.eye(places, device=moments.device))
    return (inverse / inverse.diagonal().mean()).to(inputs.dtype)
