"""User-level gradient inversion: one image that stands for what a client's images share.

After the abstract of arXiv 2409.07291; the paper's text was not at hand. Stated there: the target is one representative
image of a user behind the gradient of a large batch, and a denoising diffusion model is the prior. Inferred: how the
prior is used, and the distance. With the network's gradient g(x) of one image x under the soft label (the label counts
over B) and the update g*,

    D(x) = 1 - <g(x), g*> / (|g(x)| |g*|).

The norm of a batch's mean gradient is not that of one image's, so the cosine is compared. What differs between the
images averages out of g*, what they share stays. Three ways to look for x, and two baselines:

- ``plug-and-play`` (Graikos et al. 2022, arXiv 2206.09012, as in the authors' notebook for faces): Adamax steps on
  |e(x_t, t) - e|^2 at a falling t, in turn with steps on D, whose gradient is clipped to a multiple of the other's
  norm; in the end x is noised a little and denoised by the prior alone.
- ``dps`` (Chung et al. 2023, arXiv 2209.14687, algorithm 1): ancestral sampling; after each step x moves by
  -(zeta / sqrt(D)) dD/dx_t, with D taken at the prediction of x0.
- ``none``: no prior; D plus total variation, by Adam on signs as in Inverting Gradients (arXiv 2003.14053).
- ``prior-only``: plug-and-play without its steps on D: what somebody finds who has not seen the update.

There is no augmentation, unlike in plug-and-play's own experiments: a gradient is not the same for a mirrored image.

Ours, and no paper's: clients that train a diffusion model. Where noise and timesteps are private only the expectation
over them can be matched, so g(x) is the mean over ``draws`` fresh draws of both; t is drawn from the timesteps that can
be read off the update (attacks/timesteps/recovery.py), else from the whole schedule.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor
from typing_extensions import override

from attacks.attack import Attack, Needs, Outcome
from attacks.inversion.entry_weights import balanced_weights
from attacks.inversion.gradient_matching import Derivative, GradientMatching, weighted_cosine_distance
from attacks.inversion.problem import InversionProblem
from attacks.labels.soft_label import soft_label
from attacks.observation import Observation
from attacks.published.ddim_prior import GLOBAL, check_prior
from attacks.published.denoising_prior import DenoisingPrior, load_denoising_prior
from attacks.published.inverting_gradients import InvertingGradients
from attacks.timesteps.conditions import Conditions
from attacks.timesteps.recovery import recover_timesteps, timestep_hypotheses
from fl_sim.diffusion import DiffusionTask

Method = Literal["plug-and-play", "dps", "none", "prior-only"]
NO_PRIOR = "none"
RECIPES: dict[Method, tuple[int, float]] = {
    "plug-and-play": (200, 1.0),
    "dps": (100, 3.0),
    "none": (400, 0.1),
    "prior-only": (200, 1.0),
}
"""Steps and ``lr`` of every method; plug-and-play's are its authors'."""
TINY = torch.finfo(torch.float32).tiny


class UserLevel(Attack):
    """One representative image, with a diffusion model as prior or without."""

    name: ClassVar[str] = "user-level"
    needs: ClassVar[Needs] = Needs.NOTHING
    representative: ClassVar[bool] = True

    prior: str = Field(
        NO_PRIOR, description="none, or the model that knows images: the global one that was sent, or a checkpoint"
    )
    method: Method | None = Field(
        None, validate_default=True, description="unset: plug-and-play where there is a prior, else none"
    )
    steps: int | None = Field(None, ge=8, description="of the search; unset: the method's")
    lr: float | None = Field(
        None, gt=0, description="step of Adamax (plug-and-play), of Adam (none), zeta (dps); unset: the method's"
    )
    clip: float = Field(1.25, gt=0, description="largest norm of D's gradient, over the prior's; plug-and-play")
    norm_memory: float = Field(0.5, ge=0, lt=1, description="weight of the past in the prior's mean gradient norm")
    timestep_floor: float = Field(0.2, ge=0, le=1, description="share of T to which plug-and-play's t falls")
    timestep_jitter: float = Field(0.05, ge=0, le=1, description="largest random shift of t, as a share of T")
    final_timestep: float = Field(0.1, gt=0, le=1, description="share of T to which the image is noised in the end")
    final_steps: int = Field(10, ge=1, description="of ancestral sampling, from there to the image")
    tv: float = Field(0.01, ge=0, description="weight of the total variation; method none")
    draws: int = Field(
        16, ge=1, description="of noise and timestep an evaluation, where a diffusion client's are private"
    )
    derivative: Derivative = Field("automatic", description="derivative of the matching loss")

    @field_validator("method")
    @classmethod
    def _fits_prior(cls, method: Method | None, info: ValidationInfo) -> Method | None:
        prior = info.data.get("prior", NO_PRIOR)
        if method not in (None, "none") and prior == NO_PRIOR:
            raise ValueError(f"it needs a prior; allowed: prior = {GLOBAL!r} or the path of a checkpoint")
        if method == "none" and prior != NO_PRIOR:
            raise ValueError(f"it uses no prior, and prior = {prior!r}; allowed: prior = {NO_PRIOR!r}")
        return method

    @override
    def check(self, observation: Observation) -> None:
        super().check(observation)
        if self.prior != NO_PRIOR:
            check_prior(self.name, self.prior, observation.circumstances)

    @override
    def images_at_once(self, observation: Observation) -> int:
        if not isinstance(observation.circumstances.task, DiffusionTask):
            return 1
        return self.draws if observation.noise is None else len(observation.noise)

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find the image."""
        method = self.method or ("none" if self.prior == NO_PRIOR else "plug-and-play")
        steps, lr = self.steps or RECIPES[method][0], self.lr or RECIPES[method][1]
        problem.budget.plan(steps + 1)
        shared = SharedGradient(problem, self.draws, self.derivative, generator)
        if method == "none":
            search = InvertingGradients(iterations=steps, lr=lr, total_variation=self.tv)
            image = search.descend(shared, problem.randn(generator, 1))
        else:
            prior = load_denoising_prior(problem, self.prior, shared.label)
            if method == "dps":
                image = posterior_sampling(prior, shared, steps, lr, generator)
            else:
                image = self.plug_and_play(
                    prior, shared if method == "plug-and-play" else None, problem, steps, lr, generator
                )
        return Outcome(image, torch.tensor([-1]), shared.value([image]), shared.common_label)

    def plug_and_play(
        self,
        prior: DenoisingPrior,
        shared: "SharedGradient | None",
        problem: InversionProblem,
        steps: int,
        lr: float,
        generator: torch.Generator,
    ) -> Tensor:
        """The image [1,C,H,W] after ``steps`` pairs of steps (arXiv 2206.09012); without ``shared`` by the prior alone.

        One Adamax serves both kinds of step, as in the authors' code.
        """
        image = problem.randn(generator, 1).requires_grad_()
        optimizer = torch.optim.Adamax([image], lr=lr)
        mean_norm: Tensor | None = None
        for step in range(steps):
            timestep, noise = self.timestep(step, steps, prior.timesteps, generator), problem.randn(generator, 1)
            error = prior.noise(prior.add_noise(image, noise, timestep), timestep) - noise
            (image.grad,) = torch.autograd.grad(error.square().mean(), image)
            norm = image.grad.norm()
            mean_norm = norm if mean_norm is None else torch.lerp(norm, mean_norm, self.norm_memory)
            optimizer.step()
            if shared is not None:
                _, (gradient,) = shared([image])
                image.grad = gradient * (self.clip * mean_norm / gradient.norm().clamp_min(TINY)).clamp(max=1)
                optimizer.step()
            with torch.no_grad():
                image.clamp_(-1, 1)
        first = max(round(self.final_timestep * prior.timesteps) - 1, 0)
        with torch.no_grad():
            x_t = prior.add_noise(image, problem.randn(generator, 1), first)
            return sample(prior, x_t, prior.schedule(first, self.final_steps), problem, generator)

    def timestep(self, step: int, steps: int, total: int, generator: torch.Generator) -> int:
        """t of a step, 0..T-1, for T = ``total``: falls in waves from T to the floor, plus the random shift.

            t = ((S - i) / 1.5 + (S - i) / 3 cos(i / 10)) / S (T - floor) + floor + U,    U in -jitter..jitter

        in the authors' count from 1 to T, less 1; their floor is 200 and their jitter 50, of T = 1000.
        """
        left, floor = steps - step, self.timestep_floor * total
        jitter = round(self.timestep_jitter * total)
        wave = left / 1.5 + left / 3 * math.cos(step / 10)
        shift = int(torch.randint(-jitter, jitter + 1, (), generator=generator))
        return min(max(int(wave / steps * (total - floor) + floor) + shift, 1), total) - 1


class SharedGradient:
    """D(x) and dD/dx for one image [1,C,H,W] that stands for all behind the update.

    Entries of the update count by what is known of them (attacks/inversion/entry_weights.py): all the same unless some
    were not sent or a defence's noise differs. Of several steps, or of Adam's, the update's direction stands for the
    mean gradient's.

    Attributes:
        soft_label: the label counts over N, float32 [K]; None in diffusion.
        conditions: timesteps, and labels where the network takes them, that are drawn from; None in classification.
    """

    def __init__(
        self, problem: InversionProblem, draws: int, derivative: Derivative, generator: torch.Generator
    ) -> None:
        self.problem, self.draws, self.generator = problem, draws, generator
        diffuses = isinstance(problem.task, DiffusionTask)
        self.soft_label = None if diffuses else soft_label(problem)
        self.conditions = possible_conditions(problem) if diffuses else None
        observed = mean_direction(problem)
        std = {name: torch.zeros_like(value) for name, value in observed.items()}
        if not _adaptive(problem):
            std = problem.std
        distance = weighted_cosine_distance(balanced_weights(observed, std, 0.0))
        self._noise, self._drawn = problem.noise, self.conditions
        self._matching = GradientMatching(problem, self.training_loss, distance, derivative, observed=observed)

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """D (a detached scalar) and dD/dx, under fresh draws; counts as one evaluation."""
        self._draw()
        return self._matching(unknowns)

    def value(self, unknowns: Sequence[Tensor]) -> float:
        """D alone, under fresh draws."""
        self._draw()
        return self._matching.value(unknowns)

    def training_loss(self, unknowns: Sequence[Tensor]) -> Tensor:
        """The scalar whose weight gradient is g(x)."""
        (image,) = unknowns
        if self.soft_label is not None:
            return self.problem.loss(image, labels=self.soft_label.expand(len(image), -1))
        assert self._drawn is not None
        assert self._noise is not None
        timesteps, labels = self._drawn
        return self.problem.loss(image.expand_as(self._noise), self._noise, timesteps, labels)

    @property
    def label(self) -> Tensor | None:
        """The label int64 [1] that most of the images have; None where training uses none."""
        if self.soft_label is not None:
            return self.soft_label.argmax().reshape(1)
        assert self.conditions is not None
        labels = self.conditions.labels
        return None if labels is None else labels.mode().values.reshape(1)

    @property
    def common_label(self) -> Tensor | None:
        """The label int64 [1] that all the images have, as far as counts tell, else -1; None where there are none."""
        if self.soft_label is not None:
            alone = float(self.soft_label.max()) > 1 - 0.5 / self.problem.samples
        else:
            assert self.conditions is not None
            alone = self.conditions.labels is not None and len(self.conditions.labels.unique()) == 1
        return self.label if alone or self.label is None else torch.full_like(self.label, -1)

    def _draw(self) -> None:
        """Draw noise and timesteps as clients do, unless there are none or the server dictated them.

        The timesteps are spread evenly over those that are possible, so that their mean varies less.
        """
        if self.conditions is None or self.problem.noise is not None:
            return
        places = (torch.arange(self.draws) + torch.rand(self.draws, generator=self.generator)) / self.draws
        count = len(self.conditions.timesteps)
        self._drawn = self.conditions.at((places * count).long().clamp(max=count - 1))
        self._noise = self.problem.draw_noise(self.generator, self.draws)


def possible_conditions(problem: InversionProblem) -> Conditions:
    """The timesteps behind a diffusion client's update, with labels where the network takes them; ascending.

    Those that the server dictated, else those that can be read off, else all of the schedule.

    Raises:
        HiddenTimestepsError: if the network takes labels and they cannot be read off.
    """
    if problem.timesteps is not None:
        return Conditions(problem.timesteps, problem.labels)
    if problem.num_classes is not None:
        return timestep_hypotheses(problem)[0]
    recovered = recover_timesteps(problem)
    found = recovered.timesteps if recovered.known else recovered.distinct
    possible = found if len(found) else torch.arange(problem.scheduler.config.num_train_timesteps)
    return Conditions(possible.sort().values.to(problem.device))


def mean_direction(problem: InversionProblem) -> dict[str, Tensor]:
    """What stands for the direction of the mean gradient, by parameter.

    Of a single step of Adam that is the step u = g / (|g| + eps) itself: of its large entries the sign alone is known.
    """
    optimizer = problem.circumstances.local_optimizer
    if not _adaptive(problem) or problem.circumstances.local_steps > 1:
        return problem.gradient
    assert optimizer is not None
    return {name: value / (value.abs() + optimizer.eps) for name, value in problem.gradient.items()}


def _adaptive(problem: InversionProblem) -> bool:
    optimizer = problem.circumstances.local_optimizer
    return optimizer is not None and optimizer.adaptive


def posterior_sampling(
    prior: DenoisingPrior, shared: SharedGradient, steps: int, guidance: float, generator: torch.Generator
) -> Tensor:
    """An image [1,C,H,W] sampled under guidance (arXiv 2209.14687, algorithm 1, with D for the squared residual)."""
    problem = shared.problem
    x_t, timesteps = problem.randn(generator, 1), prior.schedule(prior.timesteps - 1, steps)
    for timestep, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
        x_t = x_t.detach().requires_grad_()
        predicted = prior.x0(x_t, timestep)
        x0 = predicted.detach().clamp(-1, 1)
        value, (derivative,) = shared([x0.requires_grad_()])
        # Through the prediction before it is clipped: clipping would zero the derivative wherever it acts.
        (gradient,) = torch.autograd.grad(predicted, x_t, grad_outputs=derivative)
        with torch.no_grad():
            moved = prior.step(x_t, x0, timestep, following, problem.randn(generator, 1))
            x_t = moved - guidance / value.clamp_min(TINY).sqrt() * gradient
    return x_t.clamp(-1, 1)


def sample(
    prior: DenoisingPrior, x_t: Tensor, timesteps: Sequence[int], problem: InversionProblem, generator: torch.Generator
) -> Tensor:
    """The image [1,C,H,W] that the prior makes of ``x_t`` at the first of the falling ``timesteps``."""
    for timestep, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
        x0 = prior.x0(x_t, timestep).clamp(-1, 1)
        x_t = prior.step(x_t, x0, timestep, following, problem.randn(generator, 1))
    return x_t
