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
from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor

from attacks.inversion.image_prior import random_smooth_images
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.inversion.restarts import PROGRESS
from attacks.residual.conv_inputs import Result, of_convolution_inputs
from fl_sim import diffusion

_CLEAR = 10.0
"""Times what noise adds to singular values, for the smallest that counts."""
_ROUNDING = 1e-6
"""The same in parts of the largest singular value, for float32."""
_EQUATIONS = 2.0
"""How many there have to be for every unknown."""
_ALIKE = 0.1
"""Distance of images, in parts of their norm, below which they are the same one."""
_INSIDE = 1e-6
"""Share of the inputs outside the spans that is as good as none."""
_TOLD = 3e-3
"""The same for a search that has told x_t. Stuck it ends above 0.01, at late timesteps above 0.05."""
_STARTS, _START_NOISE = 8, 0.3
"""How many random starts there are, and the noise on their smooth images."""
_SLICE = 40
"""Evaluations in which a search that is on its way makes ``PROGRESS``; most make ten times as much."""


def told_by_input_spans(
    problem: InversionProblem, timesteps: Tensor, generator: torch.Generator, max_evaluations: int
) -> Tensor | None:
    """x_t [N,C,H,W] at ``timesteps`` int64 [N], searched for by the layers' inputs; None where these do not tell it.

    Spends ``max_evaluations`` more at most.
    """
    spans, budget = InputSpans(problem, timesteps), problem.evaluations + max_evaluations
    for _ in range(_STARTS if spans.enough else 0):
        run = LBFGSRun(spans, [_start(problem, timesteps, generator)])
        before = math.inf
        while run.loss > _INSIDE and (left := budget - problem.evaluations) > 0:
            if not run.advance(min(_SLICE, left)) < before / PROGRESS:
                break
            before = run.loss
        if run.loss < _TOLD and not _alike(run.unknowns[0]):
            return run.unknowns[0].detach()
    return None


def _start(problem: InversionProblem, timesteps: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth images as they are at ``timesteps``, with little noise: from as much as there is some get stuck."""
    images = random_smooth_images(problem.samples, problem.image_shape, generator).to(problem.device)
    signal_scale, _ = diffusion.signal_and_noise_scale(problem.scheduler, timesteps, images)
    return signal_scale * images + _START_NOISE * problem.randn(generator)


class InputSpans:
    """What share of the layers' inputs at ``timesteps`` int64 [N] lies outside the spaces that the gradient shows.

    Attributes:
        enough: whether the gradient shows enough of them to tell x_t.
    """

    def __init__(self, problem: InversionProblem, timesteps: Tensor) -> None:
        self.problem, self.timesteps = problem, timesteps
        blank = next(iter(problem.gradient.values())).new_zeros(problem.samples, *problem.image_shape)
        with torch.no_grad():
            shown = self._of_inputs(blank, problem.gradient, lambda name, h: _row_space(problem, name, len(h)))
        self._bases = {name: basis for name, basis in shown.items() if basis is not None}
        self.enough = sum(map(_equations, self._bases.values())) > _EQUATIONS * blank.numel()

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """For [x_t], [N,C,H,W]: a detached scalar in 0..1 and its derivative; counts as one evaluation."""
        self.problem.evaluations += 1
        [x_t] = unknowns
        shares = self._of_inputs(x_t, self._bases, lambda name, h: _share_outside(h, self._bases[name]))
        value = torch.stack(list(shares.values())).mean()
        return value.detach(), list(torch.autograd.grad(value, [x_t]))

    def _of_inputs(self, x_t: Tensor, names: Container[str], use: Callable[[str, Tensor], Result]) -> dict[str, Result]:
        return of_convolution_inputs(self.problem.model, x_t, self.timesteps, names, use)


def _alike(images: Tensor) -> bool:
    """Whether two of the images [N,C,H,W] nearly coincide: twice the same one lies inside wherever it does once."""
    flat = images.detach().flatten(1)
    return len(flat) > 1 and bool(torch.pdist(flat).min() < _ALIKE * flat.norm(dim=1).max())


def _share_outside(inputs: Tensor, basis: Tensor) -> Tensor:
    outside = inputs - (inputs @ basis) @ basis.T
    return outside.square().sum() / inputs.square().sum().clamp_min(torch.finfo(inputs.dtype).tiny)


def _equations(basis: Tensor) -> int:
    """P (K - P), not counting inputs that are always zero, as padding is."""
    positions = basis.shape[1]
    return positions * (int((basis.abs().amax(dim=1) > _ROUNDING).sum()) - positions)


def _row_space(problem: InversionProblem, name: str, dimensions: int) -> Tensor | None:
    """An orthonormal basis [K, dimensions] of the rows of a weight's gradient, if they show so many dimensions."""
    if problem.signs_only:
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
