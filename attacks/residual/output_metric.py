"""The error of a gradient as the error of the derivatives with respect to layers' outputs, for r at a known x_t.

The weight gradient of a convolution is D^T H (attacks/residual/subspace_init.py). Patches H of natural inputs are much
alike, so that a squared error of the gradient hardly shows an error of D along most directions, and a search for r
takes long to remove it. Where x_t is held H is known, and D follows by regularised least squares:

    D^T = G H^T (H H^T + damping m I)^-1,    m = mean eigenvalue of H H^T that is not zero by shape.

The distance is the sum of the layers' squared errors of D, with weights that balance the tensors as in
attacks/inversion/entry_weights.py; parameters that are no convolution's weights count as they are.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.inversion.entry_weights import balanced_weights
from attacks.inversion.gradient_matching import Distance
from attacks.inversion.problem import InversionProblem
from attacks.residual.conv_inputs import map_convolution_inputs

Metric = Callable[[Tensor], Tensor]
"""From an error e [O,K] of a gradient to e B, with the positive matrix B [K,K] of which <e, e B> is the error of D."""


def output_distance(
    problem: InversionProblem,
    x_t: Tensor,
    timesteps: Tensor,
    layer_balance_power: float,
    damping: float,
    labels: Tensor | None = None,
) -> Distance:
    """The distance above, scaled to 1 for g = 0, for noisy images ``x_t`` [N,C,H,W] at ``timesteps`` int64 [N].

    ``labels`` int64 [N] are those of the images, where the network takes them.
    """
    with torch.no_grad():
        metrics = map_convolution_inputs(
            problem.model, x_t, timesteps, problem.gradient, lambda _, inputs: _output_metric(inputs, damping), labels
        )

    def transformed(name: str, error: Tensor) -> Tensor:
        metric = metrics.get(name)
        return error if metric is None else metric(error.flatten(1)).view_as(error)

    # Every tensor is balanced as one, by the root mean square that it has in the metric.
    scaled = {
        name: value * _root_ratio((value * transformed(name, value)).sum(), value.square().sum())
        for name, value in problem.gradient.items()
    }
    entries = [value.numel() for value in problem.gradient.values()]
    weights = [piece.mean() for piece in balanced_weights(scaled, problem.std, layer_balance_power).split(entries)]

    def distance(gradient: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        error = gradient - observed
        derivative = torch.cat(
            [
                weight * transformed(name, piece.view_as(value)).flatten()
                for weight, piece, (name, value) in zip(
                    weights, error.split(entries), problem.gradient.items(), strict=True
                )
            ]
        )
        return error @ derivative, 2 * derivative

    return distance


def _output_metric(inputs: Tensor, damping: float) -> Metric:
    """B = H^T (H H^T + damping m I)^-2 H of inputs H [P,K], by whichever of P and K is smaller."""
    positions, width = inputs.shape
    wide = positions < width
    inputs = inputs.detach()
    gram = inputs.double() @ inputs.double().T if wide else inputs.double().T @ inputs.double()
    scale = damping * gram.diagonal().mean()  # keeps the numbers below near 1, too
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.inv(gram + scale.clamp_min(torch.finfo(gram.dtype).tiny) * identity)
    if wide:
        core = (scale * inverse @ inverse).to(inputs.dtype)
        return lambda error: ((error @ inputs.T) @ core) @ inputs
    core = (scale * inverse @ inverse @ gram).to(inputs.dtype)
    return lambda error: error @ core


def _root_ratio(energy: Tensor, squares: Tensor) -> Tensor:
    """sqrt(energy / squares), 0 where both are."""
    return (energy.clamp_min(0) / squares.clamp_min(torch.finfo(squares.dtype).tiny)).sqrt()
