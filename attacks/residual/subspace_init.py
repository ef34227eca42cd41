"""The start of a search: x_t from the row spaces of the gradient, without r.

The weight gradient of a convolution is G = D^T H, [O,K]. H [P,K] holds the patches of its input at the P positions of
all samples, D [P,O] the derivatives of the loss with respect to its outputs. So the rows of G lie in the row space of
H, whatever D is. x_t minimises the mean of two kinds of shares, both in 0..1:

- Where there are no more positions than outputs, D has full rank in general, and the rows of G span what the rows of H
  span. U-Nets have such layers in their innermost levels. Their inputs follow in closed form, of a single image up to
  scale (attacks/residual/layer_inputs.py); the share of a sample's patches that lies outside what they span is left.
- Of convolutions with a stride, which lead to these levels, the share of the row space of G outside that of H,

      |Q - H^+ H Q|^2 / |Q|^2,    with an orthonormal basis Q of the rows of G,

  is left. The closed form says nothing about them: patches that hardly overlap leave more than the scale open.

A low-rank gradient is known to show a layer's inputs where they are a batch of vectors (SPEAR, arXiv 2403.03945) or
tokens from a list (DAGER, arXiv 2405.15586). Here the positions of an image are the batch, and the inputs are functions
of an unknown image.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attacks.inversion.budget import Budget
from attacks.inversion.image_prior import random_smooth_images
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.residual.conv_inputs import map_convolution_inputs, seen_pixels
from attacks.residual.layer_inputs import determined_inputs
from attacks.residual.linear_residual import LinearResidual, Weighing, of_entries, of_outputs
from attacks.residual.minimiser import Candidate, Minimiser
from attacks.residual.unknowns import NoisyImageAndResidual
from fl_sim import diffusion

SMALLEST_SINGULAR_VALUE = 1e-6
"""Relative to the largest one; what is smaller is float32's rounding."""
Share = Callable[[Tensor], Tensor]
"""From a layer's inputs H [P,K] to the part in 0..1 that is not explained."""
RIDGE = 1e-9
"""Added to H H^T, relative to its mean diagonal, so that smooth images, whose patches are alike, can be inverted."""


class SubspaceInit(BaseModel):
    """Finds x_t by the row spaces of the gradient, then r at that x_t.

    An evaluation for x_t runs the network down to the first layer with a closed form, forward and back, and costs a
    fraction of a matching loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    starts: int = Field(8, ge=0, description="starts from random smooth images; 0 leaves out the search by row spaces")
    start_noise: float = Field(
        0.3, ge=0, description="deviation of the noise on these images; with as much as x_t has, searches get stuck"
    )
    slice_evaluations: int = Field(
        40, ge=1, description="evaluations between two looks at the share that is not explained"
    )
    stall_ratio: float = Field(2.0, gt=1, description="a start is given up when a slice divides the share by less")
    solved_below: float = Field(1e-9, gt=0, description="share at which a start ends, and r is solved for")
    turn_ratio: float = Field(
        30.0, gt=1, description="x_t and r take turns until solved; one of x_t's divides the share by so much at most"
    )
    accept_below: float = Field(
        1e-3, gt=0, description="share below which an x_t is accepted; searches that are stuck end above 0.01"
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
    most_positions: int = Field(
        1024, ge=0, description="positions, times images, up to which row spaces of layers with a stride are compared"
    )
    residual_evaluations: int = Field(200, ge=1, description="most evaluations for r at an x_t")
    residual_slice: int = Field(10, ge=1, description="evaluations between two looks at their distance")
    slow_ratio: float = Field(
        1.2, gt=1, description="an accepted x_t, and r, are left when a slice divides the share, or distance, by less"
    )
    residual_equations: float = Field(
        5.0, gt=0, description="equations per unknown of r for which layers are taken, the last ones first"
    )
    residual_damping: float = Field(
        1e-3, gt=0, description="added to the second moments of the layers' inputs in it, relative to their mean"
    )

    def move(self, candidate: Candidate, budget: Budget) -> None:
        """Move a candidate to the x_t that the gradient's row spaces determine, if they do, with the r that fits it.

        The gradient is linear in r, so that r at fixed x_t is a linear least-squares problem. Where that does not solve
        the candidate, x_t is searched on as long as that helps, and then r once more.
        """
        unknowns, problem = candidate.unknowns, candidate.minimiser.problem
        if not isinstance(unknowns, NoisyImageAndResidual) or problem.circumstances.local_steps > 1:
            return  # in later steps the layers' inputs are not those at the weights sent
        most = min(self.residual_evaluations, int(budget.left))
        run = self.search(problem, unknowns.timesteps, candidate.minimiser.generator, budget, unknowns.labels)
        if run is None:
            return
        residual = torch.zeros_like(run.point[0])
        while True:
            x_t = run.point[0].detach()
            weighing = self._weighing(candidate.minimiser, unknowns, x_t)
            alone = LinearResidual(problem, unknowns, x_t, residual, weighing)
            _descend(alone, problem.budget.more(most), self.residual_slice, self.slow_ratio, 0.0)
            [residual] = alone.point
            candidate.move_to([unknowns.point_of(x_t, x_t)[0], residual])
            loss, share = candidate.matching.value(candidate.point), run.loss
            if loss <= candidate.minimiser.solved_below:
                break
            _descend(run, budget, self.slice_evaluations, self.slow_ratio, share / self.turn_ratio)
            if not run.loss * self.slow_ratio < share:
                break
        candidate.losses.append(loss)

    def _weighing(self, minimiser: Minimiser, unknowns: NoisyImageAndResidual, x_t: Tensor) -> dict[str, Weighing]:
        """How errors of the gradient count for r: of an exact one, as errors of the derivatives by layers' outputs."""
        if minimiser.metric is None:
            return of_entries(minimiser.problem, minimiser.layer_balance_power)
        return of_outputs(minimiser.problem, unknowns, x_t, self.residual_equations, self.residual_damping)

    def search(
        self,
        problem: InversionProblem,
        timesteps: Tensor,
        generator: torch.Generator,
        budget: Budget,
        labels: Tensor | None = None,
    ) -> LBFGSRun | None:
        """The search that found x_t [N,C,H,W] at ``timesteps`` and ``labels`` int64 [N]; None where none did."""
        objective = SubspaceObjective(problem, timesteps, self, labels)
        for _ in range(self.starts if objective.determines_x_t(self.min_equations) else 0):
            run = LBFGSRun(objective, [self.draw(problem, timesteps, generator)])
            _descend(run, budget, self.slice_evaluations, self.stall_ratio, self.accept_below)
            if run.loss < self.accept_below:
                _descend(run, budget, self.slice_evaluations, self.slow_ratio, self.solved_below)
            if run.loss < self.accept_below and not has_duplicates(run.point[0], self.duplicate_distance):
                return run
        return None

    def draw(self, problem: InversionProblem, timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """Random smooth images as they are at ``timesteps``, with little noise."""
        images = random_smooth_images(problem.samples, problem.image_shape, generator).to(problem.device)
        signal_scale, _ = diffusion.signal_and_noise_scale(problem.scheduler, timesteps, images)
        return signal_scale * images + self.start_noise * problem.randn(generator)


def _descend(
    run: LBFGSRun | LinearResidual, budget: Budget, slice_evaluations: int, stall_ratio: float, below: float
) -> None:
    """Continue a run until its loss is ``below``, a slice does not divide it enough, or the budget is spent."""
    before = math.inf
    while run.loss > below and budget.left:
        if not run.advance(budget.at_most(slice_evaluations)) < before / stall_ratio:
            break
        before = run.loss


def has_duplicates(images: Tensor, distance: float) -> bool:
    """Whether two of the images [N,C,H,W] are nearer than ``distance`` times the largest norm.

    An image that is found twice has no larger share outside the row spaces than the two right ones.
    """
    flat = images.detach().flatten(1)
    return len(flat) > 1 and bool(torch.pdist(flat).min() < distance * flat.norm(dim=1).max())


class SubspaceObjective:
    """The mean share of layers' inputs, or of the row spaces of their gradients, that x_t does not explain; see above.

    Args:
        problem: the gradient.
        timesteps: int64 [N].
        settings: ``SubspaceInit``.
        labels: int64 [N], where the network takes them.
    """

    def __init__(
        self, problem: InversionProblem, timesteps: Tensor, settings: SubspaceInit, labels: Tensor | None = None
    ) -> None:
        self.problem, self.timesteps, self.labels, self._settings = problem, timesteps, labels, settings
        self._shares: dict[str, Share] = {}
        self._equations, self._has_closed_form = 0, False
        blank = next(iter(problem.gradient.values())).new_zeros(problem.samples, *problem.image_shape)
        self._num_unknowns = blank.numel()
        for name, pixels in seen_pixels(problem.model, blank, timesteps, problem.gradient, labels).items():
            strided = 2 * len(pixels) < pixels.max()
            found = self._compare_row_spaces(name, pixels) if strided else self._compare_inputs(name, pixels)
            if found is None:
                continue
            self._shares[name], equations = found
            self._equations += equations
            if not strided:
                self._has_closed_form = True
                break  # layers behind it are functions of what is known by now

    def _compare_row_spaces(self, name: str, pixels: Tensor) -> tuple[Share, int] | None:
        """The share of the row space of G outside that of H, and the number of equations."""
        positions = len(pixels) * self.problem.samples
        if positions > self._settings.most_positions:
            return None
        row_space = _row_space(self.problem, name, positions, self._settings.clear_of_noise)
        if row_space is None:
            return None
        return partial(_row_space_outside, row_space=row_space), row_space.shape[1] * (_width(row_space) - positions)

    def _compare_inputs(self, name: str, pixels: Tensor) -> tuple[Share, int] | None:
        """The share of the inputs outside the closed form, and the number of equations."""
        samples = self.problem.samples
        row_space = _row_space(self.problem, name, len(pixels) * samples, self._settings.clear_of_noise)
        if row_space is None or row_space.shape[1] < len(pixels) * samples:
            return None
        basis = determined_inputs(row_space, pixels, samples)
        if basis is None:
            return None
        entries = len(row_space) // pixels.shape[1] * int(pixels.max())
        return partial(_inputs_outside, basis=basis.to(row_space.dtype)), samples * (entries - samples)

    def determines_x_t(self, min_equations: float) -> bool:
        """Whether a layer has a closed form, and there are more than ``min_equations`` equations for every unknown."""
        return self._has_closed_form and self._equations > min_equations * self._num_unknowns

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """For [x_t], [N,C,H,W]: a detached scalar in 0..1 and its derivative; counts as one evaluation."""
        return self.problem.evaluate(self._value_and_derivative, unknowns)

    def _value_and_derivative(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        self.problem.budget.spend()
        [x_t] = unknowns
        shares = map_convolution_inputs(
            self.problem.model,
            x_t,
            self.timesteps,
            self._shares,
            lambda name, inputs: self._shares[name](inputs),
            self.labels,
            stop=True,
        )
        value = torch.stack(list(shares.values())).mean()
        return value.detach(), list(torch.autograd.grad(value, [x_t]))


def _inputs_outside(inputs: Tensor, basis: Tensor) -> Tensor:
    """The mean over samples of |h - V^T V h|^2 / |h|^2: H [N p,K] with h [p K] of a sample, and a basis V [N,p K]."""
    flat = inputs.reshape(len(basis), -1)
    outside = flat - (flat @ basis.T) @ basis
    return (outside.square().sum(1) / flat.square().sum(1).clamp_min(torch.finfo(flat.dtype).tiny)).mean()


def _row_space_outside(inputs: Tensor, row_space: Tensor) -> Tensor:
    """|Q - H^+ H Q|^2 / |Q|^2 of inputs H [P,K] and a basis Q [K,d]."""
    dtype, inputs, row_space = inputs.dtype, inputs.double(), row_space.double()
    gram = inputs @ inputs.T
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    combination = torch.cholesky_solve(inputs @ row_space, torch.linalg.cholesky(gram + ridge))
    outside = row_space - inputs.T @ combination
    return (outside.square().sum() / row_space.shape[1]).to(dtype)


def _width(basis: Tensor) -> int:
    """The number of inputs that are not always zero, as padding is."""
    return int((basis.abs().amax(dim=1) > SMALLEST_SINGULAR_VALUE).sum())


def _row_space(problem: InversionProblem, name: str, dimensions: int, clear_of_noise: float) -> Tensor | None:
    """An orthonormal basis [K,d] of the rows of a weight's gradient; None if it shows less than it could.

    d is the number of positions, ``dimensions``, or of outputs, whichever is smaller.
    """
    if problem.signs_only:
        return None
    gradient, deviations = (named[name].flatten(1).double() for named in (problem.gradient, problem.std))
    outputs, width = gradient.shape
    rank = min(outputs, dimensions)
    if dimensions >= width:
        return None
    _, sizes, rows = torch.linalg.svd(gradient, full_matrices=False)
    noise = deviations.square().mean().sqrt() * (math.sqrt(outputs) + math.sqrt(width))
    if sizes[rank - 1] <= max(clear_of_noise * noise, SMALLEST_SINGULAR_VALUE * sizes[0]):
        return None
    return rows[:rank].T.to(problem.gradient[name].dtype)
