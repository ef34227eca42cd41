"""r at a known x_t: linear least squares, by conjugate gradients.

At a held x_t the gradient is a linear function of r, g = A r with A = (2/n) J^T. So r minimises

    D(r) = <A r - g*, W (A r - g*)> / <g*, W g*>,

for which conjugate gradients (Hestenes and Stiefel 1952) need fewer steps than any other method that sees A^T W A along
one direction a step. A d is a backward pass through a graph that is built once; A^T w is the derivative of <A d, w>.

Of an exact gradient W measures the errors of the derivatives by layers' outputs (attacks/residual/output_metric.py), in
the layers nearest to the output alone. These have equations enough, and all frequencies of r show in them about alike,
while layers of fewer positions hardly see any but the lowest. A backward pass that ends there is a part of a whole one.
Of any other gradient W holds the weights of attacks/inversion/entry_weights.py.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attacks.inversion.entry_weights import balanced_weights
from attacks.inversion.problem import InversionProblem
from attacks.residual.conv_inputs import map_convolution_inputs, seen_pixels
from attacks.residual.output_metric import output_metric
from attacks.residual.unknowns import NoisyImageAndResidual
from fl_sim import diffusion

Weighing = Callable[[Tensor], Tensor]
"""W of one layer, for an error of its gradient."""


class LinearResidual:
    """A search for r at a held x_t; it can be continued, as an ``LBFGSRun`` can.

    A step is a gradient of the training loss with respect to some layers' weights, and the derivative of D. It counts
    as one evaluation.

    Args:
        problem: the gradient.
        unknowns: what r is an unknown of; its units count.
        x_t: [N,C,H,W], held.
        start: r to start from, in the units of ``unknowns``.
        weighing: W by the name of a weight; other weights do not count.

    Attributes:
        point: [r], in the units of ``unknowns``.
        loss: D at ``point``; infinite before the first slice.
    """

    def __init__(
        self,
        problem: InversionProblem,
        unknowns: NoisyImageAndResidual,
        x_t: Tensor,
        start: Tensor,
        weighing: dict[str, Weighing],
    ) -> None:
        self.problem, self._unknowns = problem, unknowns
        self._fixed = unknowns.point_of(x_t, x_t)[0]
        self.point = [start.detach()]
        self.loss = math.inf
        self._weighing = list(weighing.values())
        self._parameters = [problem.parameters[name] for name in weighing]
        self._observed = [problem.gradient[name] for name in weighing]
        weighed = [weigh(value) for weigh, value in zip(self._weighing, self._observed, strict=True)]
        energy = _dot(self._observed, weighed)
        self._scale = 1 / energy.clamp_min(torch.finfo(energy.dtype).tiny)
        with sdpa_kernel(SDPBackend.MATH):  # other kernels of attention cannot be derived twice
            self._prediction = diffusion.predict(problem.model, x_t, unknowns.timesteps, unknowns.labels)
        self._any = torch.zeros_like(x_t, requires_grad=True)
        slope = unknowns.loss_slope(self._any)
        self._gradient = torch.autograd.grad(self._prediction, self._parameters, slope, create_graph=True)
        self._left: Tensor | None = None
        self._direction, self._square = torch.zeros_like(x_t), math.inf

    def advance(self, evaluations: int) -> float:
        """Search a slice of ``evaluations`` and return ``loss``.

        The last one looks at D itself, so that errors of rounding do not add up over slices, and so does the very first
        one. The others are steps.
        """
        left, steps = self._left, evaluations - 1
        if left is None:
            _, [left] = self._evaluate(self._distance, self.point[0])
            steps -= 1
        for _ in range(steps):
            square = float(left.square().sum())
            if not square > 0:  # nothing is left, or not a number
                break
            self._direction = left + square / self._square * self._direction
            self._square = square
            energy, [curved] = self._evaluate(self._energy, self._direction)
            if not energy > 0:
                break
            step = square / float(energy)
            self.point = [self.point[0] + step * self._direction]
            left = left - step * curved
        loss, [self._left] = self._evaluate(self._distance, self.point[0])
        self.loss = float(loss)
        return self.loss

    def _evaluate(
        self, objective: Callable[[Tensor], tuple[Tensor, Tensor]], residual: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """One evaluation: for the trace, the images are those of the current point."""

        def of_unknowns(unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
            self.problem.budget.spend()
            value, derivative = objective(unknowns[0])
            return value, [derivative]

        return self.problem.evaluate(
            of_unknowns, [residual], lambda _: self._unknowns.images([self._fixed, *self.point])
        )

    def _distance(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """D and -dD/dr / 2."""
        errors = [observed - value for observed, value in zip(self._observed, self._apply(residual), strict=True)]
        return self._measure(errors)

    def _energy(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """<A d, W A d> and A^T W A d, in the units of D."""
        return self._measure(self._apply(direction))

    def _measure(self, errors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """<e, W e> and A^T W e, in the units of D."""
        weighed = [self._scale * weigh(error) for weigh, error in zip(self._weighing, errors, strict=True)]
        [transposed] = torch.autograd.grad(self._gradient, [self._any], weighed, retain_graph=True)
        return _dot(errors, weighed), transposed

    def _apply(self, residual: Tensor) -> Sequence[Tensor]:
        """A r."""
        slope = self._unknowns.loss_slope(residual)
        return torch.autograd.grad(self._prediction, self._parameters, slope, retain_graph=True)


def of_outputs(
    problem: InversionProblem, unknowns: NoisyImageAndResidual, x_t: Tensor, min_equations: float, damping: float
) -> dict[str, Weighing]:
    """W of the errors of D, in as many of the last layers as have ``min_equations`` equations for every unknown."""
    names, wanted = [], min_equations * x_t.numel()
    seen = seen_pixels(problem.model, x_t, unknowns.timesteps, problem.gradient, unknowns.labels)
    for name, pixels in reversed(seen.items()):
        if wanted > 0:
            names.append(name)
            wanted -= len(problem.gradient[name]) * min(
                len(pixels) * problem.samples, problem.gradient[name][0].numel()
            )

    def weighing(_: str, inputs: Tensor) -> Weighing:
        metric = output_metric(inputs, damping)
        return lambda error: metric(error.flatten(1)).view_as(error)

    with torch.no_grad():
        return map_convolution_inputs(problem.model, x_t, unknowns.timesteps, names, weighing, unknowns.labels)


def of_entries(problem: InversionProblem, layer_balance_power: float) -> dict[str, Weighing]:
    """W of the weights of attacks/inversion/entry_weights.py, for all layers."""
    weights = balanced_weights(problem.gradient, problem.std, layer_balance_power)
    pieces = weights.split([value.numel() for value in problem.gradient.values()])
    return {
        name: partial(torch.mul, piece.view_as(value))
        for piece, (name, value) in zip(pieces, problem.gradient.items(), strict=True)
    }


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The sum of the products of all entries."""
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()
