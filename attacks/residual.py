"""The residual attack: search over the noisy image and the network's error instead of image and noise.

With the residual r = f_theta(x_t, t) - target the gradient of the training loss is

    grad_theta L = (2/n) J_theta(x_t, t)^T r,        n = number of averaged elements,

a function of (x_t, t, r) only, and linear in r. The timesteps are read off the gradient (attacks/timesteps.py), (x_t,
r) are searched for with L-BFGS, and the image follows in closed form (``fl_sim.diffusion.x0_from_residual``). Private
noise is therefore no protection: it is found along with the image. Three things make the search short and reliable:

- the squared error is balanced over the parameter tensors (``balanced_squared_error``);
- r is measured in units of its expected size rho(t), which the attacker finds on random smooth images;
- a start that stops making progress is parked for one of another scale; the matching loss alone decides.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, AttackError, Needs, Outcome
from attacks.lbfgs import LBFGSRun
from attacks.matching import Derivative, GradientMatching, balanced_squared_error
from attacks.problem import InversionProblem
from attacks.timesteps import recover_timesteps
from fl_sim import diffusion

_SLICE = 40
"""Evaluations between two looks at a run's progress."""
_PATIENCE = 4
"""Slices that every run gets."""
_PROGRESS = 2.0
_PUBLIC_IMAGES = 8


class Residual(Attack):
    """Search over (x_t, r), private noise and timesteps (or over x_t alone where the server dictated them).

    A start is worked on as long as its matching loss at least halves every 80 evaluations.
    """

    name: ClassVar[str] = "residual"
    needs: ClassVar[Needs] = Needs.LOCAL_STEPS

    starts: tuple[tuple[float, float], ...] = Field(
        ((0.05, 0.05), (1.0, 1.0), (0.3, 0.3), (1.0, 0.05), (0.05, 0.05), (1.0, 1.0)),
        min_length=1,
        description="scale of the random start of x_t, and of r in units of its expected size; tried in this order",
    )
    max_evaluations: int = Field(2000, ge=1, description="budget over all starts")
    precision: float = Field(
        3e-4, gt=0, description="solved when the estimated relative error of the image falls below this"
    )
    balance: float = Field(1.5, ge=0, le=2, description="power of balanced_squared_error; 0 is the plain squared error")
    history: int = Field(300, ge=1, description="L-BFGS history; long pays, the search is ill-conditioned")
    derivative: Derivative = Field("one-sided", description="derivative of the matching loss (attacks/matching.py)")

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find (x_t, r) by L-BFGS from several starts and compute the image from them."""
        space = KnownSpace(problem) if problem.noise is not None else PrivateSpace(problem)
        distance = balanced_squared_error(problem.gradient, self.balance)
        objective = GradientMatching(problem, space.training_loss, distance, self.derivative, space.images)
        runs = [LBFGSRun(objective, space.start(generator, *scales), self.history) for scales in self.starts]
        solved_below = (self.precision / space.amplification) ** 2
        best = search_starts(runs, problem, self.max_evaluations, solved_below)
        return Outcome(space.images(best.unknowns), space.timesteps, objective.value(best.unknowns))


def search_starts(
    runs: Sequence[LBFGSRun], problem: InversionProblem, max_evaluations: int, solved_below: float
) -> LBFGSRun:
    """Work on one run as long as it makes progress, then on the next; when all were tried, on the best of them.

    Returns the run with the smallest matching loss when one is solved, all have broken down, or the budget is spent.
    """
    waiting, tried = list(runs[1:]), [runs[0]]
    while problem.evaluations < max_evaluations:
        run = tried[-1]
        if not _makes_progress(run):
            if waiting:
                run = waiting.pop(0)
                tried.append(run)
            else:
                run = _best(tried)
        if run.advance(min(_SLICE, max_evaluations - problem.evaluations)) <= solved_below:
            break
        if not waiting and math.isinf(_best(tried).loss):
            break
    return _best(tried)


def _best(runs: Sequence[LBFGSRun]) -> LBFGSRun:
    return min(runs, key=lambda run: run.loss)


def _makes_progress(run: LBFGSRun) -> bool:
    """Whether the loss has halved over the last two slices; a young run has the benefit of the doubt."""
    if len(run.losses) < _PATIENCE:
        return not run.losses or math.isfinite(run.loss)
    return run.losses[-1] * _PROGRESS <= run.losses[-3]


class PrivateSpace:
    """Unknowns (x_t, r / rho) at timesteps read off the gradient.

    Attributes:
        timesteps: int64 [N].
        amplification: how much larger the image's error is than the search's, from dividing by sqrt(alphas_cumprod).

    Raises:
        AttackError: if the timesteps cannot be told from the gradient.
    """

    def __init__(self, problem: InversionProblem) -> None:
        recovered = recover_timesteps(problem)
        if not recovered.known:
            raise AttackError(f"timesteps cannot be read off this update (margin {recovered.margin:.1f})")
        self.problem = problem
        self.timesteps = recovered.timesteps.to(problem.device)
        self.amplification = _amplification(problem, self.timesteps)
        self.expected_residual = expected_residual(problem, self.timesteps)

    def start(self, generator: torch.Generator, image_scale: float, residual_scale: float) -> list[Tensor]:
        """Normal random unknowns."""
        return [self.problem.randn(generator) * image_scale, self.problem.randn(generator) * residual_scale]

    def training_loss(self, unknowns: Sequence[Tensor]) -> Tensor:
        """(2/n) <f_theta(x_t, t), r>, whose weight gradient is that of the mean squared error."""
        x_t, scaled_residual = unknowns
        prediction = diffusion.predict(self.problem.model, x_t, self.timesteps)
        return (prediction * (scaled_residual * self.expected_residual)).sum() * (2 / x_t.numel())

    def images(self, unknowns: Sequence[Tensor]) -> Tensor:
        """x0 [N,C,H,W] in closed form."""
        x_t, scaled_residual = unknowns
        with torch.no_grad():
            prediction = diffusion.predict(self.problem.model, x_t, self.timesteps)
            residual = scaled_residual * self.expected_residual
            return diffusion.x0_from_residual(self.problem.scheduler, x_t, prediction, residual, self.timesteps)


class KnownSpace:
    """Unknown sqrt(alphas_cumprod) x0, noise and timesteps dictated by the server; the same roles as PrivateSpace."""

    def __init__(self, problem: InversionProblem) -> None:
        assert problem.noise is not None
        assert problem.timesteps is not None
        self.problem = problem
        self.noise, self.timesteps = problem.noise, problem.timesteps
        self.signal_scale, _ = diffusion.signal_and_noise_scale(problem.scheduler, self.timesteps, self.noise)
        self.amplification = float(1 / self.signal_scale.min())

    def start(self, generator: torch.Generator, image_scale: float, _: float) -> list[Tensor]:
        """Normal random unknown; there is no residual to start."""
        return [self.problem.randn(generator) * image_scale * self.signal_scale]

    def training_loss(self, unknowns: Sequence[Tensor]) -> Tensor:
        """The client's own loss (arXiv 2006.11239, eq. 14)."""
        images = self.images(unknowns)
        return diffusion.loss(self.problem.model, self.problem.scheduler, images, self.noise, self.timesteps)

    def images(self, unknowns: Sequence[Tensor]) -> Tensor:
        """x0 [N,C,H,W]."""
        return unknowns[0] / self.signal_scale


def expected_residual(problem: InversionProblem, timesteps: Tensor) -> Tensor:
    """rho(t) [N,1,1,1]: root mean square of f_theta(x_t, t) - target on random smooth images."""
    source = torch.Generator().manual_seed(0)
    channels, height, width = problem.image_shape
    coarse = torch.randn(_PUBLIC_IMAGES, channels, 4, 4, generator=source) * 0.5
    images = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").clamp(-1, 1)
    images, noise = images.to(problem.device), problem.randn(source, _PUBLIC_IMAGES)
    sizes = []
    with torch.no_grad():
        for timestep in timesteps:
            t = timestep.expand(_PUBLIC_IMAGES)
            prediction = diffusion.predict(problem.model, diffusion.add_noise(problem.scheduler, images, noise, t), t)
            residual = prediction - diffusion.target(problem.scheduler, images, noise, t)
            sizes.append(residual.square().mean().sqrt())
    return torch.stack(sizes).reshape(-1, 1, 1, 1)


def _amplification(problem: InversionProblem, timesteps: Tensor) -> float:
    if problem.scheduler.config.prediction_type != "epsilon":
        return 1.0
    return float(problem.scheduler.alphas_cumprod[timesteps.cpu()].min() ** -0.5)
