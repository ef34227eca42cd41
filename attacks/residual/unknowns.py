"""What the residual attack searches over: (x_t, r) in units that make all of them count alike, or x0 alone."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from attacks.attack import Outcome, check_signal
from attacks.inversion.gradient_estimate import momentum_weights
from attacks.inversion.gradient_matching import Matching, Objective
from attacks.inversion.image_prior import natural_image_energy, random_smooth_images
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.residual.sample_diagnostics import FITS, better_places, sample_likeness, sample_misfits, sample_vectors
from attacks.timesteps.recovery import possible_timesteps
from fl_sim import diffusion

_PUBLIC_IMAGES = 8
_LOG_SIZE, _LOG_SIZE_SPREAD = -0.2, 0.35
"""Of the logarithm of r's size over its expected one: measured -0.3 +- 0.3 for photographs on a trained network, and
0 +- 0.03 on an untrained one, where the noise's variance tells it anyway."""


NEARLY_RIGHT = 1e-2
"""Matching loss of searches that are on their way. Of a single image those that are stuck stay above; of a batch
a sample may be lost, or the search stuck, below it as well."""


class Space(Protocol):
    """What is searched over: unknowns, the training loss they stand for, and the images they lead to.

    Attributes:
        timesteps: int64 [N].
        amplification: how much larger the image's error is than the search's, from dividing by sqrt(alphas_cumprod).
    """

    problem: InversionProblem
    timesteps: Tensor
    amplification: float

    def start(self, generator: torch.Generator, image_scale: float, residual_scale: float) -> list[Tensor]:
        """Normal random unknowns."""

    def training_loss(self, unknowns: Sequence[Tensor]) -> Tensor:
        """A scalar whose weight gradient is that of the mean squared error."""

    def step_loss(self, samples: Tensor, unknowns: Sequence[Tensor]) -> Tensor:
        """The same over the chosen samples only, int64 [B]."""

    def of_steps(self, unknowns: Sequence[Tensor], steps: Sequence[Tensor]) -> list[Tensor]:
        """Unknowns that were found as one batch, as those of the steps that the samples are dealt to."""

    def images(self, unknowns: Sequence[Tensor]) -> Tensor:
        """x0 [N,C,H,W]."""

    def noisy_images(self, unknowns: Sequence[Tensor]) -> Tensor:
        """x_t [N,C,H,W]."""

    def at_scale(self, unknowns: Sequence[Tensor]) -> list[Tensor]:
        """Unknowns of the same images, with the residual itself rather than an unknown multiple of it."""

    def energy(self, unknowns: Sequence[Tensor]) -> Tensor:
        """Minus twice the log-likelihood of what is unknown before anything was observed, less a constant; a scalar."""


def spaces(problem: InversionProblem) -> list[Space]:
    """Where to search, the likeliest first: in one space, where noise is private and no timestep was drawn twice.

    Where noise is known the image is the only unknown, but the search for it has local minima that a free residual
    goes around.

    Raises:
        HiddenTimestepsError: if the timesteps cannot be read off the gradient.
        AttackError: if the noisy images at these timesteps hold nothing of the images.
    """
    if problem.noise is not None and problem.timesteps is not None:
        return [KnownSpace(problem), PrivateSpace(problem, problem.timesteps)]
    possible = possible_timesteps(problem)
    check_signal(problem.scheduler, possible[0])
    return [PrivateSpace(problem, timesteps) for timesteps in possible]


class PrivateSpace:
    """Unknowns (rho x_t / max rho, r / max rho) at ``timesteps`` int64 [N] that were read off the gradient."""

    def __init__(self, problem: InversionProblem, timesteps: Tensor) -> None:
        self.problem, self.timesteps = problem, timesteps
        self.amplification = _amplification(problem, timesteps)
        self.expected_residual = expected_residual(problem, self.timesteps)
        self.residual_scale = self.expected_residual.max()
        self.image_scale = self.residual_scale / self.expected_residual

    def start(self, generator: torch.Generator, image_scale: float, residual_scale: float) -> list[Tensor]:
        """Normal random unknowns; no x_t starts larger than with variance 1, and every r in units of its own rho."""
        x_t_scale = (1 / self.image_scale).clamp_max(image_scale)
        r_scale = residual_scale / self.image_scale
        return [self.problem.randn(generator) * x_t_scale, self.problem.randn(generator) * r_scale]

    def training_loss(self, unknowns: Sequence[Tensor]) -> Tensor:
        """(2/n) <f_theta(x_t, t), r>, whose weight gradient is that of the mean squared error."""
        return self.step_loss(torch.arange(self.problem.samples, device=self.problem.device), unknowns)

    def step_loss(self, samples: Tensor, unknowns: Sequence[Tensor]) -> Tensor:
        """The same over the chosen samples only, int64 [B]."""
        x_t, residual = (values[samples] for values in self.noisy_images_and_residuals(unknowns))
        prediction = diffusion.predict(self.problem.model, x_t, self.timesteps[samples])
        return (prediction * residual).sum() * (2 / x_t.numel())

    def of_steps(self, unknowns: Sequence[Tensor], steps: Sequence[Tensor]) -> list[Tensor]:
        """With momentum earlier steps weigh more, which r, being a factor, had taken up."""
        optimizer = self.problem.circumstances.local_optimizer
        assert optimizer is not None  # where there are several steps there is one
        weights = momentum_weights(len(steps), optimizer.momentum)
        scaled = unknowns[1].detach().clone()
        for samples, weight in zip(steps, weights, strict=True):
            scaled[samples] *= sum(weights) / (len(steps) * weight)
        return [unknowns[0].detach().clone(), scaled]

    def images(self, unknowns: Sequence[Tensor]) -> Tensor:
        """x0 [N,C,H,W] in closed form."""
        x_t, residual = self.noisy_images_and_residuals(unknowns)
        with torch.no_grad():
            prediction = diffusion.predict(self.problem.model, x_t, self.timesteps)
            return self.images_from(x_t, prediction, residual)

    def noisy_images(self, unknowns: Sequence[Tensor]) -> Tensor:
        """x_t [N,C,H,W]."""
        return unknowns[0] * self.image_scale

    def unknowns_of(self, x_t: Tensor, residual: Tensor) -> list[Tensor]:
        """The unknowns that stand for x_t and r, each [N,C,H,W]."""
        return [(x_t / self.image_scale).detach(), (residual / self.residual_scale).detach()]

    def moved(self, unknowns: Sequence[Tensor], places: Tensor) -> list[Tensor]:
        """The unknowns with sample i in place ``places[i]``, int64 [N]; r keeps its ratio to the expected size."""
        x_t, residual = self.noisy_images_and_residuals(unknowns)
        relative, comes_from = residual / self.expected_residual, places.argsort()
        return self.unknowns_of(x_t[comes_from], relative[comes_from] * self.expected_residual)

    def noisy_images_and_residuals(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """x_t and r, each [N,C,H,W]."""
        return self.noisy_images(unknowns), unknowns[1] * self.residual_scale

    def at_scale(self, unknowns: Sequence[Tensor]) -> list[Tensor]:
        """Multiply r by its estimated scale."""
        x_t, residual = self.noisy_images_and_residuals(unknowns)
        with torch.no_grad():
            prediction = diffusion.predict(self.problem.model, x_t, self.timesteps)
            return [unknowns[0].detach(), unknowns[1].detach() * self._scale(x_t, prediction, residual)]

    def energy(self, unknowns: Sequence[Tensor]) -> Tensor:
        """|eps|^2 + E(x0), for an r of known scale."""
        x_t, residual = self.noisy_images_and_residuals(unknowns)
        scheduler, timesteps = self.problem.scheduler, self.timesteps
        prediction = diffusion.predict(self.problem.model, x_t, timesteps)
        noise = diffusion.noise_from_target(scheduler, x_t, prediction - residual, timesteps)
        images = diffusion.x0_from_residual(scheduler, x_t, prediction, residual, timesteps)
        return noise.square().sum() + natural_image_energy(images)

    def images_from(self, x_t: Tensor, prediction: Tensor, residual: Tensor) -> Tensor:
        """x0 [N,C,H,W]; an unknown scale of r is estimated."""
        if not self.problem.scale_known:
            residual = residual * self._scale(x_t, prediction, residual)
        return diffusion.x0_from_residual(self.problem.scheduler, x_t, prediction, residual, self.timesteps)

    def _scale(self, x_t: Tensor, prediction: Tensor, residual: Tensor) -> Tensor:
        """The likeliest c for which c r has the right size.

        Two things tell: the noise that belongs to c r, affine in c, n_0 + c (n_1 - n_0), has mean square 1, up to
        sqrt(2 / its number of elements); and c r is of about its expected size. Near the end of the schedule r is so
        small that only the second tells anything.
        """
        expected = (self.expected_residual.square().mean() / residual.square().mean()).sqrt()
        residual = residual * expected
        offset = diffusion.noise_from_target(self.problem.scheduler, x_t, prediction, self.timesteps)
        slope = diffusion.noise_from_target(self.problem.scheduler, x_t, prediction - residual, self.timesteps) - offset
        logarithms = torch.linspace(-2, 2, 801, device=residual.device)
        c = logarithms.exp()
        variance = slope.square().mean() * c**2 + 2 * (slope * offset).mean() * c + offset.square().mean()
        surprise = (variance - 1).square() * (residual.numel() / 2)
        surprise += ((logarithms - _LOG_SIZE) / _LOG_SIZE_SPREAD).square()
        return expected * c[surprise.argmin()]


class KnownSpace:
    """Unknown sqrt(alphas_cumprod) x0 in units of 1 / rho, noise and timesteps dictated by the server."""

    def __init__(self, problem: InversionProblem) -> None:
        assert problem.noise is not None
        assert problem.timesteps is not None
        self.problem = problem
        self.noise, self.timesteps = problem.noise, problem.timesteps
        signal_scale, _ = diffusion.signal_and_noise_scale(problem.scheduler, self.timesteps, self.noise)
        signal_scale = torch.where(signal_scale > 0, signal_scale, 1.0)
        self.amplification = float(1 / signal_scale.min())
        residual = expected_residual(problem, self.timesteps)
        told = diffusion.determines_x0(problem.scheduler, self.timesteps).to(residual.device).reshape(residual.shape)
        self.image_scale = torch.where(told, residual.max() / residual / signal_scale, 0.0)
        self._largest_start = residual / residual.max()

    def start(self, generator: torch.Generator, image_scale: float, _: float) -> list[Tensor]:
        """Normal random unknown, sqrt(alphas_cumprod) x0 of variance 1 at most; there is no residual to start."""
        return [self.problem.randn(generator) * self._largest_start.clamp_max(image_scale)]

    def training_loss(self, unknowns: Sequence[Tensor]) -> Tensor:
        """The client's own loss (arXiv 2006.11239, eq. 14)."""
        return self.step_loss(torch.arange(self.problem.samples, device=self.problem.device), unknowns)

    def step_loss(self, samples: Tensor, unknowns: Sequence[Tensor]) -> Tensor:
        """The same over the chosen samples only, int64 [B]."""
        batch = self.images(unknowns)[samples], self.noise[samples], self.timesteps[samples]
        return diffusion.loss(self.problem.model, self.problem.scheduler, *batch)

    def of_steps(self, unknowns: Sequence[Tensor], _: Sequence[Tensor]) -> list[Tensor]:
        """An image is the same in every step."""
        return list(unknowns)

    def images(self, unknowns: Sequence[Tensor]) -> Tensor:
        """x0 [N,C,H,W]."""
        return unknowns[0] * self.image_scale

    def noisy_images(self, unknowns: Sequence[Tensor]) -> Tensor:
        """x_t [N,C,H,W]."""
        return diffusion.add_noise(self.problem.scheduler, self.images(unknowns), self.noise, self.timesteps)

    def at_scale(self, unknowns: Sequence[Tensor]) -> list[Tensor]:
        """Leave them: there is no residual."""
        return list(unknowns)

    def energy(self, unknowns: Sequence[Tensor]) -> Tensor:
        """E(x0)."""
        return natural_image_energy(self.images(unknowns))


Sharper = Callable[[Sequence[Tensor]], Objective]
"""From unknowns that are nearly right to an objective that is searched for faster from there."""


class SpaceRun(LBFGSRun):
    """L-BFGS on a matching loss over the unknowns of a space.

    ``losses`` are matching losses all along, also when the search has gone over to the ``sharper`` objective.
    """

    def __init__(
        self, space: Space, matching: Matching, start: Sequence[Tensor], history: int, sharper: Sharper | None = None
    ) -> None:
        super().__init__(matching, start, history)
        self.space, self.matching, self.sharper = space, matching, sharper

    def advance(self, evaluations: int) -> float:
        """As for any run; goes over to the sharper objective once the loss is ``NEARLY_RIGHT`` and all samples fit.

        It goes back for good where that does not make the matching loss smaller.
        """
        before, loss_before = [unknown.detach().clone() for unknown in self.unknowns], self.loss
        loss = super().advance(evaluations)
        if self.objective is not self.matching:
            self.losses[-1] = self.matching.value(self.unknowns) if math.isfinite(loss) else math.inf
            if not self.losses[-1] < loss_before:
                self.put_back(before)
                self.losses[-1] = loss_before
                self.change_objective(self.matching)
        elif self.sharper and loss < NEARLY_RIGHT and self.misfits().max() < FITS:
            self.change_objective(self.sharper(self.unknowns))
            self.sharper = None
        return self.loss

    def misfits(self) -> Tensor:
        """How badly each sample fits, [N] (attacks/residual/sample_diagnostics.py)."""
        return sample_misfits(*self.sample_vectors())

    def sample_vectors(self) -> tuple[Tensor, Tensor]:
        """What every sample adds to the time projections' gradient, and what was observed of it, each [D,N]."""
        return sample_vectors(self.space.problem, self.space.timesteps, self.matching.gradient(self.unknowns))

    def outcome(self) -> Outcome:
        """Images, timesteps and matching loss of the current point."""
        return Outcome(self.matching.images(self.unknowns), self.space.timesteps, self.matching.value(self.unknowns))


class BatchRun(SpaceRun):
    """The same over a batch of private noise, whose samples move to where they belong (attacks/residual/sample_diagnostics.py)."""

    space: PrivateSpace

    def advance(self, evaluations: int) -> float:
        """As for any run; where samples changed places it is as young as a new one."""
        loss = super().advance(evaluations)
        if self.objective is self.matching and math.isfinite(loss):
            places = better_places(sample_likeness(*self.sample_vectors()))
            if places is not None:
                self.put_back(self.space.moved(self.unknowns, places))
                self.change_objective(self.matching)
                self.losses = [self.matching.value(self.unknowns)]
        return self.loss


def expected_residual(problem: InversionProblem, timesteps: Tensor) -> Tensor:
    """rho(t) [N,1,1,1]: root mean square of f_theta(x_t, t) - target on random smooth images."""
    source = torch.Generator().manual_seed(0)
    images = random_smooth_images(_PUBLIC_IMAGES, problem.image_shape, source).to(problem.device)
    noise = problem.randn(source, _PUBLIC_IMAGES)
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
    signal = problem.scheduler.alphas_cumprod[timesteps.cpu()]
    return float(torch.where(signal > 0, signal, 1.0).min() ** -0.5)
