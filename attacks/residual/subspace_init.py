"""The start of a search: x_t from the row spaces of the gradient, without r.

The weight gradient of a convolution is G = D^T H, [O,K]. H [P,K] holds the patches of its input at the P positions of
all samples, D [P,O] the derivatives of the loss with respect to its outputs. Where there are no more positions than
outputs, D has full rank in general, and the rows of G span what the rows of H span, whatever D is. So x_t minimises

    mean over such layers of  1 - |H(x_t) Q|^2 / |H(x_t)|^2,

with Q [K,P] an orthonormal basis of the rows of G: P (K - P) equations a layer. U-Nets have such layers in their
innermost levels. A low-rank gradient is known to show a layer's inputs where they are a batch of vectors (SPEAR, arXiv
2403.03945) or tokens from a list (DAGER, arXiv 2405.15586). Here the positions of an image are the batch, and the
inputs are functions of an unknown image.
"""

import math
from collections.abc import Callable, Container, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attacks.inversion.budget import Budget
from attacks.inversion.image_prior import random_smooth_images
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.residual.conv_inputs import Result, map_convolution_inputs
from attacks.residual.minimiser import Candidate
from attacks.residual.unknowns import NoisyImageAndResidual
from fl_sim import diffusion

SMALLEST_SINGULAR_VALUE = 1e-6
"""Relative to the largest one; what is smaller is float32's rounding."""


class SubspaceInit(BaseModel):
    """Finds x_t by the row spaces of the gradient, then r at that x_t."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    starts: int = Field(8, ge=0, description="starts from random smooth images; 0 leaves out the search by row spaces")
    start_noise: float = Field(
        0.3, ge=0, description="deviation of the noise on these images; with as much as x_t has, searches get stuck"
    )
    slice_evaluations: int = Field(
        40, ge=1, description="evaluations between two looks at the share of the inputs outside the row spaces"
    )
    stall_ratio: float = Field(2.0, gt=1, description="a start is given up when a slice divides the share by less")
    solved_below: float = Field(1e-6, gt=0, description="share at which a start ends")
    accept_below: float = Field(
        3e-3, gt=0, description="share below which an x_t is accepted; searches that are stuck end above 0.01"
    )
    duplicate_distance: float = Field(
        0.1,
        ge=0,
        description="relative distance of two images of a batch below which they are the same one, and not accepted",
    )
    min_equations: float = Field(2.0, gt=0, description="equations per unknown below which it is not tried")
    clear_of_noise: float = Field(
        10.0,
        ge=1,
        description="a singular value of the gradient counts above so many times the largest one of the noise",
    )
    residual_evaluations: int = Field(80, ge=1, description="evaluations for r at the x_t that was found")

    def move(self, candidate: Candidate, budget: Budget) -> None:
        """Move a candidate to the x_t that the gradient's row spaces determine, if they do, with the r that fits it.

        The gradient is linear in r, so that r at fixed x_t is a linear least-squares problem.
        """
        unknowns, problem = candidate.unknowns, candidate.minimiser.problem
        if not isinstance(unknowns, NoisyImageAndResidual) or problem.circumstances.local_steps > 1:
            return  # in later steps the layers' inputs are not those at the weights sent
        evaluations = int(budget.left)
        x_t = self.find(problem, unknowns.timesteps, candidate.minimiser.generator, budget, unknowns.labels)
        if x_t is None:
            return
        fixed, start = unknowns.point_of(x_t, unknowns.noisy_images_and_residuals(candidate.point)[1])
        fixed.requires_grad_()

        def over_residual(residual: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
            value, (_, derivative) = candidate.matching([fixed, *residual])
            return value, [derivative]

        alone = LBFGSRun(over_residual, [start], candidate.history)
        alone.advance(min(self.residual_evaluations, evaluations))
        candidate.move_to([fixed, *alone.point])

    def find(
        self,
        problem: InversionProblem,
        timesteps: Tensor,
        generator: torch.Generator,
        budget: Budget,
        labels: Tensor | None = None,
    ) -> Tensor | None:
        """x_t [N,C,H,W] at ``timesteps`` and ``labels`` int64 [N]; None where the row spaces do not determine it."""
        objective = SubspaceObjective(problem, timesteps, self.clear_of_noise, labels)
        for _ in range(self.starts if objective.determines_x_t(self.min_equations) else 0):
            run = LBFGSRun(objective, [self.draw(problem, timesteps, generator)])
            before = math.inf
            while run.loss > self.solved_below and budget.left:
                if not run.advance(budget.at_most(self.slice_evaluations)) < before / self.stall_ratio:
                    break
                before = run.loss
            if run.loss < self.accept_below and not has_duplicates(run.point[0], self.duplicate_distance):
                return run.point[0].detach()
        return None

    def draw(self, problem: InversionProblem, timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """Random smooth images as they are at ``timesteps``, with little noise."""
        images = random_smooth_images(problem.samples, problem.image_shape, generator).to(problem.device)
        signal_scale, _ = diffusion.signal_and_noise_scale(problem.scheduler, timesteps, images)
        return signal_scale * images + self.start_noise * problem.randn(generator)


def has_duplicates(images: Tensor, distance: float) -> bool:
    """Whether two of the images [N,C,H,W] are nearer than ``distance`` times the largest norm.

    An image that is found twice has no larger share outside the row spaces than the two right ones.
    """
    flat = images.detach().flatten(1)
    return len(flat) > 1 and bool(torch.pdist(flat).min() < distance * flat.norm(dim=1).max())


class SubspaceObjective:
    """The mean share of the layers' inputs at ``timesteps`` int64 [N] outside the row spaces of the gradient, over x_t.

    ``clear_of_noise``: as in ``SubspaceInit``; ``labels`` int64 [N], where the network takes them.
    """

    def __init__(
        self, problem: InversionProblem, timesteps: Tensor, clear_of_noise: float, labels: Tensor | None = None
    ) -> None:
        self.problem, self.timesteps, self.labels = problem, timesteps, labels
        blank = next(iter(problem.gradient.values())).new_zeros(problem.samples, *problem.image_shape)
        self._num_unknowns = blank.numel()

        def basis(name: str, inputs: Tensor) -> Tensor | None:
            return _row_space(problem, name, len(inputs), clear_of_noise)

        with torch.no_grad():
            bases = self._map_inputs(blank, problem.gradient, basis)
        self._bases = {name: basis for name, basis in bases.items() if basis is not None}

    def determines_x_t(self, min_equations: float) -> bool:
        """Whether there are more than ``min_equations`` equations for every unknown."""
        return sum(map(_count_equations, self._bases.values())) > min_equations * self._num_unknowns

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """For [x_t], [N,C,H,W]: a detached scalar in 0..1 and its derivative; counts as one evaluation."""
        return self.problem.evaluate(self._value_and_derivative, unknowns)

    def _value_and_derivative(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        self.problem.budget.spend()
        [x_t] = unknowns
        shares = self._map_inputs(x_t, self._bases, lambda name, h: _share_outside(h, self._bases[name]))
        value = torch.stack(list(shares.values())).mean()
        return value.detach(), list(torch.autograd.grad(value, [x_t]))

    def _map_inputs(
        self, x_t: Tensor, names: Container[str], function: Callable[[str, Tensor], Result]
    ) -> dict[str, Result]:
        return map_convolution_inputs(self.problem.model, x_t, self.timesteps, names, function, self.labels)


def _share_outside(inputs: Tensor, basis: Tensor) -> Tensor:
    """1 - |H Q|^2 / |H|^2 of inputs H [P,K] and basis Q [K,P]."""
    outside = inputs - (inputs @ basis) @ basis.T
    return outside.square().sum() / inputs.square().sum().clamp_min(torch.finfo(inputs.dtype).tiny)


def _count_equations(basis: Tensor) -> int:
    """P (K - P), without inputs that are always zero, as padding is."""
    positions = basis.shape[1]
    return positions * (int((basis.abs().amax(dim=1) > SMALLEST_SINGULAR_VALUE).sum()) - positions)


def _row_space(problem: InversionProblem, name: str, dimensions: int, clear_of_noise: float) -> Tensor | None:
    """An orthonormal basis [K, dimensions] of the rows of a weight's gradient; None if it does not show so many."""
    if problem.signs_only:
        return None
    gradient, deviations = (named[name].flatten(1).double() for named in (problem.gradient, problem.std))
    outputs, width = gradient.shape
    if dimensions > outputs or dimensions >= width:
        return None
    _, sizes, rows = torch.linalg.svd(gradient, full_matrices=False)
    noise = deviations.square().mean().sqrt() * (math.sqrt(outputs) + math.sqrt(width))
    if sizes[dimensions - 1] <= max(clear_of_noise * noise, SMALLEST_SINGULAR_VALUE * sizes[0]):
        return None
    return rows[:dimensions].T.to(problem.gradient[name].dtype)
