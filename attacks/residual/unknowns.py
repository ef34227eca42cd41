"""The unknowns of the residual attack: noisy image and residual, or the clean image where noise is known.

Each kind knows its units. A point of the search is a list of tensors in units in which all entries move the gradient
about alike; the objects here turn it into images and back.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import Self

import torch
from torch import Tensor

from attacks.attack import check_signal
from attacks.inversion.gradient_estimate import step_weights
from attacks.inversion.image_prior import natural_image_energy, random_smooth_images
from attacks.inversion.problem import InversionProblem
from attacks.timesteps.labels import USUAL, LabelRules
from attacks.timesteps.recovery import timestep_hypotheses
from fl_sim import diffusion

PUBLIC_IMAGES = 8
"""Random smooth images on which ``expected_residual`` is measured."""
LOG_RESIDUAL_RATIO, LOG_RESIDUAL_RATIO_STD = -0.2, 0.35
"""Mean and deviation of log(rms r / rho(t)). Measured: -0.3 +- 0.3 for photographs on a trained network; 0 +- 0.03 on
an untrained one, where the variance of the noise tells the ratio anyway."""


class Unknowns(ABC):
    """What the search varies, the training loss that it stands for, and the images that it leads to.

    Attributes:
        problem: the problem of which these are the unknowns.
        timesteps: int64 [N], at which the search runs.
        labels: int64 [N], with which it runs; None where the network takes none.
        reported_timesteps: int64 [N], what the attack claims; -1 where it claims nothing.
        image_error_gain: by how much the error of x0 exceeds that of x_t, from the division by sqrt(alphas_cumprod).
    """

    problem: InversionProblem
    timesteps: Tensor
    labels: Tensor | None
    reported_timesteps: Tensor
    image_error_gain: float

    @abstractmethod
    def origin(self) -> list[Tensor]:
        """The point of zeros."""

    @abstractmethod
    def draw(self, generator: torch.Generator, image_scale: float, residual_scale: float) -> list[Tensor]:
        """A normal random point of these scales."""

    @abstractmethod
    def step_loss(self, samples: Tensor, point: Sequence[Tensor]) -> Tensor:
        """A scalar with the weight gradient of the mean squared error over the chosen samples, int64 [B]."""

    @abstractmethod
    def as_local_steps(self, point: Sequence[Tensor], steps: Sequence[Tensor]) -> list[Tensor]:
        """A point that was found for one batch, as the point of local steps over these samples, each int64 [B]."""

    @abstractmethod
    def images(self, point: Sequence[Tensor]) -> Tensor:
        """x0 [N,C,H,W]."""

    @abstractmethod
    def noisy_images(self, point: Sequence[Tensor]) -> Tensor:
        """x_t [N,C,H,W]."""

    @abstractmethod
    def with_estimated_scale(self, point: Sequence[Tensor]) -> list[Tensor]:
        """A point of the same images with r itself, where the search found an unknown multiple of it."""

    @abstractmethod
    def energy(self, point: Sequence[Tensor]) -> Tensor:
        """-2 ln p(unknowns) before anything was observed, up to a constant; a scalar."""

    def labels_of(self, samples: Tensor) -> Tensor | None:
        """The labels of the chosen samples, int64 [B]; None where the network takes none."""
        return None if self.labels is None else self.labels[samples]

    def training_loss(self, point: Sequence[Tensor]) -> Tensor:
        """``step_loss`` over all samples: the weight gradient is that of arXiv 2006.11239, eq. 14."""
        return self.step_loss(torch.arange(self.problem.samples, device=self.problem.device), point)

    def of_problem(self, problem: InversionProblem) -> Self:
        """The same unknowns of another problem with this model and schedule."""
        other = copy(self)
        other.problem = problem
        return other

    def without_claimed_timesteps(self) -> Self:
        """The same unknowns, of which no timestep is reported."""
        other = copy(self)
        other.reported_timesteps = torch.full_like(self.reported_timesteps, -1)
        return other


def possible_unknowns(problem: InversionProblem, rules: LabelRules = USUAL) -> list[Unknowns]:
    """What to search for, the most likely first; labels are read off by ``rules``.

    Private noise: one entry for each possible set of timesteps, of which there is one unless a timestep was drawn
    twice. Known noise: the clean image; then noisy image and residual, which have fewer local minima.

    Raises:
        HiddenTimestepsError: if the timesteps cannot be read off the gradient.
        AttackError: if the noisy images at these timesteps hold nothing of the images.
    """
    if problem.noise is not None and problem.timesteps is not None:
        return [CleanImage(problem), NoisyImageAndResidual(problem, problem.timesteps, problem.labels)]
    hypotheses = timestep_hypotheses(problem, rules)
    check_signal(problem.task, hypotheses[0].timesteps)
    return [NoisyImageAndResidual(problem, *hypothesis) for hypothesis in hypotheses]


class NoisyImageAndResidual(Unknowns):
    """The point (rho' x_t / max rho', w r / max rho') of noisy images x_t and residuals r = f_theta(x_t, t) - target.

    rho' = w rho, with w(t) the weight of a sample in the client's loss and rho(t) the expected size of r at
    ``timesteps`` int64 [N]. ``labels`` int64 [N] are those of the samples, where the network takes them. Then x_t and r
    of all samples move the gradient about alike. Of a sample with weight 0, on which the gradient does not depend, the
    start is all that is found.
    """

    def __init__(self, problem: InversionProblem, timesteps: Tensor, labels: Tensor | None = None) -> None:
        self.problem, self.timesteps, self.reported_timesteps = problem, timesteps, timesteps
        self.labels = labels
        self.image_error_gain = _image_error_gain(problem, timesteps)
        self.expected_residual = expected_residual(problem, timesteps, labels)
        self.loss_weights = problem.loss_weights(timesteps)
        weights = torch.where(self.loss_weights > 0, self.loss_weights, 1.0)
        weighted = weights * self.expected_residual
        self.residual_scale = weighted.max() / weights
        self.image_scale = weighted.max() / weighted

    def origin(self) -> list[Tensor]:
        """x_t = 0 and r = 0."""
        return [self.problem.zeros(), self.problem.zeros()]

    def draw(self, generator: torch.Generator, image_scale: float, residual_scale: float) -> list[Tensor]:
        """A normal random point: x_t of ``image_scale``, at most of variance 1 in its units; r of scale x rho(t)."""
        x_t_scale = (1 / self.image_scale).clamp_max(image_scale)
        r_scale = residual_scale / self.image_scale
        return [self.problem.randn(generator) * x_t_scale, self.problem.randn(generator) * r_scale]

    def step_loss(self, samples: Tensor, point: Sequence[Tensor]) -> Tensor:
        """(2/n) <f_theta(x_t, t), w r> over the chosen samples, int64 [B], which have n elements."""
        x_t, residual = (values[samples] for values in self.noisy_images_and_residuals(point))
        prediction = diffusion.predict(self.problem.model, x_t, self.timesteps[samples], self.labels_of(samples))
        return (prediction * (self.loss_weights[samples] * residual)).sum() * (2 / x_t.numel())

    def loss_slope(self, residual: Tensor) -> Tensor:
        """(2/n) w r, by which ``training_loss`` grows with f_theta(x_t, t); ``residual`` is r as in a point."""
        return self.loss_weights * self.residual_scale * residual * (2 / residual.numel())

    def as_local_steps(self, point: Sequence[Tensor], steps: Sequence[Tensor]) -> list[Tensor]:
        """Divide each r by its step's relative weight in the update, which r, being a factor, had taken up."""
        weights = step_weights(self.problem.circumstances)
        scaled = point[1].detach().clone()
        for samples, weight in zip(steps, weights, strict=True):
            scaled[samples] *= sum(weights) / (len(steps) * weight)
        return [point[0].detach().clone(), scaled]

    def images(self, point: Sequence[Tensor]) -> Tensor:
        """x0 [N,C,H,W] in closed form; an unknown scale of r is estimated."""
        x_t, residual = self.noisy_images_and_residuals(point)
        with torch.no_grad():
            prediction = diffusion.predict(self.problem.model, x_t, self.timesteps, self.labels)
            if not self.problem.scale_known:
                residual = residual * self._likeliest_scale(x_t, prediction, residual)
            return diffusion.x0_from_residual(self.problem.scheduler, x_t, prediction, residual, self.timesteps)

    def noisy_images(self, point: Sequence[Tensor]) -> Tensor:
        """x_t [N,C,H,W]."""
        return point[0] * self.image_scale

    def noisy_images_and_residuals(self, point: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """x_t and r, each [N,C,H,W]."""
        return self.noisy_images(point), point[1] * self.residual_scale

    def point_of(self, x_t: Tensor, residual: Tensor) -> list[Tensor]:
        """The point that stands for x_t and r, each [N,C,H,W]."""
        return [(x_t / self.image_scale).detach(), (residual / self.residual_scale).detach()]

    def permuted(self, point: Sequence[Tensor], places: Tensor) -> list[Tensor]:
        """The point with sample i in place ``places[i]``, int64 [N]; r keeps its ratio to the expected size."""
        x_t, residual = self.noisy_images_and_residuals(point)
        relative, comes_from = residual / self.expected_residual, places.argsort()
        return self.point_of(x_t[comes_from], relative[comes_from] * self.expected_residual)

    def with_estimated_scale(self, point: Sequence[Tensor]) -> list[Tensor]:
        """Multiply r by its most likely scale."""
        x_t, residual = self.noisy_images_and_residuals(point)
        with torch.no_grad():
            prediction = diffusion.predict(self.problem.model, x_t, self.timesteps, self.labels)
            return [point[0].detach(), point[1].detach() * self._likeliest_scale(x_t, prediction, residual)]

    def energy(self, point: Sequence[Tensor]) -> Tensor:
        """|eps|^2 + E(x0), with eps whitened, for an r of known scale; E is ``natural_image_energy``."""
        x_t, residual = self.noisy_images_and_residuals(point)
        scheduler, timesteps = self.problem.scheduler, self.timesteps
        prediction = diffusion.predict(self.problem.model, x_t, timesteps, self.labels)
        noise = self._white_noise(x_t, prediction - residual)
        images = diffusion.x0_from_residual(scheduler, x_t, prediction, residual, timesteps)
        return noise.square().sum() + natural_image_energy(images)

    def _likeliest_scale(self, x_t: Tensor, prediction: Tensor, residual: Tensor) -> Tensor:
        """The most likely c of c r, a scalar.

        Two things are known. The noise that belongs to c r, which is affine in c, n_0 + c (n_1 - n_0), has, whitened, a
        mean square of 1 up to sqrt(2 / its number of elements). And c r is of about its expected size; near the end of
        the schedule, where r is small, only this tells anything.
        """
        expected = (self.expected_residual.square().mean() / residual.square().mean()).sqrt()
        residual = residual * expected
        offset = self._white_noise(x_t, prediction)
        slope = self._white_noise(x_t, prediction - residual) - offset
        logarithms = torch.linspace(-2, 2, 801, device=residual.device)
        c = logarithms.exp()
        variance = slope.square().mean() * c**2 + 2 * (slope * offset).mean() * c + offset.square().mean()
        surprise = (variance - 1).square() * (residual.numel() / 2)
        surprise += ((logarithms - LOG_RESIDUAL_RATIO) / LOG_RESIDUAL_RATIO_STD).square()
        return expected * c[surprise.argmin()]

    def _white_noise(self, x_t: Tensor, known_target: Tensor) -> Tensor:
        """The noise behind x_t and the target, mapped to what is standard normal; [N,C,H,W]."""
        noise = diffusion.noise_from_target(self.problem.scheduler, x_t, known_target, self.timesteps)
        return diffusion.whiten(noise, self.problem.diffusion.noise_offset)


class CleanImage(Unknowns):
    """The point [sqrt(alphas_cumprod) rho x0 / max rho], where the server dictated noise and timesteps."""

    def __init__(self, problem: InversionProblem) -> None:
        assert problem.noise is not None
        assert problem.timesteps is not None
        self.problem, self.noise = problem, problem.noise
        self.timesteps = self.reported_timesteps = problem.timesteps
        self.labels = problem.labels
        signal_scale, _ = diffusion.signal_and_noise_scale(problem.scheduler, self.timesteps, self.noise)
        signal_scale = torch.where(signal_scale > 0, signal_scale, 1.0)
        self.image_error_gain = float(1 / signal_scale.min())
        residual = expected_residual(problem, self.timesteps, self.labels)
        told = diffusion.determines_x0(problem.scheduler, self.timesteps).to(residual.device).reshape(residual.shape)
        weights = problem.loss_weights(self.timesteps)
        told &= weights > 0
        weighted = torch.where(told, weights, 1.0) * residual
        self.image_scale = torch.where(told, weighted.max() / weighted / signal_scale, 0.0)
        self._largest_start = weighted / weighted.max()

    def origin(self) -> list[Tensor]:
        """x0 = 0."""
        return [self.problem.zeros()]

    def draw(self, generator: torch.Generator, image_scale: float, _: float) -> list[Tensor]:
        """A normal random point, sqrt(alphas_cumprod) x0 of variance 1 at most; there is no residual to draw."""
        return [self.problem.randn(generator) * self._largest_start.clamp_max(image_scale)]

    def step_loss(self, samples: Tensor, point: Sequence[Tensor]) -> Tensor:
        """The client's own loss over the chosen samples, int64 [B] (arXiv 2006.11239, eq. 14)."""
        batch = self.images(point)[samples], self.noise[samples], self.timesteps[samples]
        return self.problem.loss(*batch, self.labels_of(samples))

    def as_local_steps(self, point: Sequence[Tensor], _: Sequence[Tensor]) -> list[Tensor]:
        """The same point: an image is the same in every step."""
        return list(point)

    def images(self, point: Sequence[Tensor]) -> Tensor:
        """x0 [N,C,H,W]."""
        return point[0] * self.image_scale

    def point_of_images(self, images: Tensor) -> list[Tensor]:
        """The point that stands for x0 [N,C,H,W]."""
        return [torch.where(self.image_scale > 0, images / self.image_scale, 0.0).detach()]

    def noisy_images(self, point: Sequence[Tensor]) -> Tensor:
        """x_t [N,C,H,W]."""
        return diffusion.add_noise(self.problem.scheduler, self.images(point), self.noise, self.timesteps)

    def with_estimated_scale(self, point: Sequence[Tensor]) -> list[Tensor]:
        """The same point: there is no residual."""
        return list(point)

    def energy(self, point: Sequence[Tensor]) -> Tensor:
        """E(x0) of ``natural_image_energy``."""
        return natural_image_energy(self.images(point))


def expected_residual(problem: InversionProblem, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
    """rho(t) [N,1,1,1], the root mean square of f_theta(x_t, t) - target on random smooth images.

    ``labels`` int64 [N] are those of the samples, where the network takes them.
    """
    generator = torch.Generator().manual_seed(0)
    images = random_smooth_images(PUBLIC_IMAGES, problem.image_shape, generator).to(problem.device)
    noise = problem.draw_noise(generator, PUBLIC_IMAGES)
    sizes = []
    with torch.no_grad():
        for sample, timestep in enumerate(timesteps):
            t = timestep.expand(PUBLIC_IMAGES)
            label = None if labels is None else labels[sample].expand(PUBLIC_IMAGES)
            x_t = diffusion.add_noise(problem.scheduler, images, noise, t)
            prediction = diffusion.predict(problem.model, x_t, t, label)
            residual = prediction - diffusion.target(problem.scheduler, images, noise, t)
            sizes.append(residual.square().mean().sqrt())
    return torch.stack(sizes).reshape(-1, 1, 1, 1)


def _image_error_gain(problem: InversionProblem, timesteps: Tensor) -> float:
    """max 1 / sqrt(alphas_cumprod) for noise prediction; 1 for v and sample prediction."""
    if problem.scheduler.config.prediction_type != "epsilon":
        return 1.0
    signal = problem.scheduler.alphas_cumprod[timesteps.cpu()]
    return float(torch.where(signal > 0, signal, 1.0).min() ** -0.5)
