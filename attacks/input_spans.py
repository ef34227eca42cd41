"""The noisy images, told by the spaces that the inputs of layers span.

The weight gradient of a convolution is G = D^T H, [O,K]: H [P,K] are the patches of its input at the P positions of all
samples, D [P,O] the signals that come back to its outputs. Where there are no more positions than outputs, D has full
rank in general, and the rows of G span what the rows of H span, whatever D is. So x_t can be searched for without r,

    min over x_t of the mean over such layers of  1 - |H(x_t) Q|^2 / |H(x_t)|^2,

with Q [K,P] an orthonormal basis of the rows of G: P (K - P) equations a layer. U-Nets have such layers in their
innermost levels. That the low rank of a gradient shows a layer's inputs is known of batches of vectors (SPEAR, arXiv
2403.03945) and of tokens from a list (DAGER, arXiv 2405.15586); here the positions of an image are the batch, and the
inputs are functions of an unknown image.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.layer_inputs import convolution_inputs
from attacks.problem import InversionProblem

_CLEAR = 10.0
"""Times what noise adds to singular values, for the smallest that counts."""
_ROUNDING = 1e-6
"""The same in parts of the largest singular value, for float32."""
_EQUATIONS = 2.0
"""How many there have to be for every unknown."""


class InputSpans:
    """What share of the layers' inputs at ``timesteps`` int64 [N] lies outside the spaces that the gradient shows.

    Attributes:
        enough: whether the gradient shows enough of them to tell x_t.
    """

    def __init__(self, problem: InversionProblem, timesteps: Tensor) -> None:
        self.problem, self.timesteps = problem, timesteps
        self._bases: dict[str, Tensor] = {}
        equations = 0
        blank = next(iter(problem.gradient.values())).new_zeros(problem.samples, *problem.image_shape)
        for name, inputs in convolution_inputs(problem.model, blank, timesteps).items():
            positions, width = inputs.shape
            basis = _row_space(problem, name, positions)
            if basis is not None:
                self._bases[name] = basis
                equations += positions * (width - positions)
        self.enough = equations > _EQUATIONS * blank.numel()

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """For [x_t], [N,C,H,W]: a detached scalar in 0..1 and its derivative; counts as one evaluation."""
        self.problem.evaluations += 1
        [x_t] = unknowns
        inputs = convolution_inputs(self.problem.model, x_t, self.timesteps)
        inside = [
            (inputs[name] @ basis).square().sum() / inputs[name].square().sum() for name, basis in self._bases.items()
        ]
        value = 1 - torch.stack(inside).mean()
        return value.detach(), list(torch.autograd.grad(value, [x_t]))


def _row_space(problem: InversionProblem, name: str, dimensions: int) -> Tensor | None:
    """An orthonormal basis [K, dimensions] of the rows of a weight's gradient, if they show so many dimensions."""
    if name not in problem.gradient or problem.signs_only:
        return None
    gradient, deviations = (named[name].flatten(1).double() for named in (problem.gradient, problem.uncertainty))
    outputs, width = gradient.shape
    if dimensions > outputs or dimensions >= width:
        return None
    _, sizes, rows = torch.linalg.svd(gradient, full_matrices=False)
    noise = deviations.square().mean().sqrt() * (math.sqrt(outputs) + math.sqrt(width))
    if sizes[dimensions - 1] <= max(_CLEAR * noise, _ROUNDING * sizes[0]):
        return None
    return rows[:dimensions].T.to(problem.gradient[name].dtype)
