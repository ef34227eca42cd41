"""The inverse problem that an Observation poses: the model at the observed weights and the gradient to be matched."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from attacks.inversion.budget import Budget
from attacks.inversion.evaluation_log import EvaluationLog
from attacks.inversion.gradient_estimate import estimate_gradient
from attacks.observation import Observation
from attacks.trace import Trace, Watch
from fl_sim import diffusion, network
from fl_sim.diffusion import DiffusionTask


class InversionProblem:
    """Everything an attack searches with, rebuilt from an Observation on one device.

    Nothing in it changes during an attack but the counter behind ``budget``.

    Attributes:
        model: the network at the observed weights, in evaluation mode.
        task: what the network is trained for: a DiffusionTask or a ClassificationTask.
        parameters: the parameters whose update was observed, by name.
        gradient: estimate of the mean gradient, by parameter name (attacks/inversion/gradient_estimate.py).
        std: standard deviation of every entry of ``gradient``, infinite where the update says nothing about it.
        samples: N, the number of images behind the update.
        image_shape: (C, H, W).
        noise: float32 [N,C,H,W], dictated by the server in the known threat model, else None.
        timesteps: int64 [N], the same.
        labels: int64 [N], revealed in the known threat model where training uses labels, else None.
        num_classes: K, where training uses labels 0..K-1; None where it uses none.
        scale_known: whether ``gradient`` estimates the gradient itself, and not an unknown multiple of it or a mean of
            such multiples.
        budget: counts the gradients of the training loss that the attack computes; without a limit of its own.
        trace: records the images on the way, if anyone wants them.
        log: keeps the evaluations, for a search that may be broken off.
        watch: is told of every evaluation, if anyone wants to know.
    """

    def __init__(
        self,
        observation: Observation,
        device: str,
        trace: Trace | None = None,
        log: EvaluationLog | None = None,
        watch: Watch | None = None,
    ) -> None:
        circumstances = observation.circumstances
        self.circumstances = circumstances
        self.task = circumstances.task
        self.device = torch.device(device)
        self.model = network.build_model(circumstances.model)
        self.model.load_state_dict(observation.weights)
        self.model.to(self.device).eval()
        self.parameters = {
            name: parameter for name, parameter in self.model.named_parameters() if name in observation.update
        }
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.parameters)
        self.gradient: dict[str, Tensor] = {}
        self.std: dict[str, Tensor] = {}
        for name in self.parameters:
            gradient, std = estimate_gradient(observation, name)
            self.gradient[name] = gradient.to(self.device)
            self.std[name] = std.to(self.device)
        self._update = observation.update
        self.samples = circumstances.num_samples
        self.image_shape = circumstances.image_shape
        self.noise = None if observation.noise is None else observation.noise.to(self.device)
        self.timesteps = None if observation.timesteps is None else observation.timesteps.to(self.device)
        self.labels = None if observation.labels is None else observation.labels.to(self.device)
        self.num_classes = self.task.label_count(circumstances.model)
        self.budget = Budget()
        self.trace, self.log, self.watch = trace, log, watch
        self.scale_known = self._scale_known()

    def evaluate(
        self,
        objective: Callable[[Sequence[Tensor]], tuple[Tensor, list[Tensor]]],
        unknowns: Sequence[Tensor],
        images: Callable[[Sequence[Tensor]], Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """``objective(unknowns)``: its value, and its derivative for each unknown or none at all.

        Every objective that calls the network is evaluated here, so that a search can be traced, watched and resumed.
        The objective itself charges the budget. ``images`` turns the unknowns into images, for the trace.
        """
        if self.trace is not None and images is not None:
            self.trace.record(self.budget.spent, lambda: images(unknowns))
        found = objective(unknowns) if self.log is None else self.log.evaluate(objective, unknowns, self.budget)
        if self.watch is not None:
            self.watch(self.budget.spent, self.budget.planned, float(found[0]))
        return found

    @property
    def signs_only(self) -> bool:
        """Whether ``gradient`` holds signs, without magnitudes."""
        defence = self.circumstances.defence
        return defence is not None and defence.signs

    def _scale_known(self) -> bool:
        defence, optimizer = self.circumstances.defence, self.circumstances.local_optimizer
        if optimizer is not None and optimizer.max_grad_norm is not None:
            # Of several steps each may have been clipped by a factor of its own.
            several = self.circumstances.local_steps * self.circumstances.num_clients > 1
            if several or _may_be_clipped(self.gradient, optimizer.max_grad_norm, 0.0):
                return False
        if defence is None:
            return True
        if defence.clip_norm is not None:
            # Of several clients each may have been clipped by a factor of its own.
            several = self.circumstances.num_clients > 1
            if several or _may_be_clipped(self._update, defence.clip_norm, defence.noise_std):
                return False
        if defence.sample_clip_norm is not None:
            several = self.samples > 1
            if several or _may_be_clipped(self.gradient, defence.sample_clip_norm, defence.gradient_noise_std):
                return False
        return not self.signs_only

    @property
    def noisy(self) -> bool:
        """Whether ``gradient`` has noise of a known size: of a defence, or of rounding to 16 bits."""
        defence, rounded = self.circumstances.defence, self.circumstances.dtype != "float32"
        if self.signs_only:
            return False
        return rounded or (
            defence is not None and bool(defence.noise_std or defence.gradient_noise_std or defence.quantisation_levels)
        )

    @property
    def diffusion(self) -> DiffusionTask:
        """The task, for attacks that know it to be diffusion (``Needs.DIFFUSION_TASK``)."""
        assert isinstance(self.task, DiffusionTask)
        return self.task

    @property
    def scheduler(self) -> DDPMScheduler:
        """The noise schedule, in diffusion."""
        return self.diffusion.noise_schedule()

    def loss(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The client's own loss of a batch at the weights that the model holds; a scalar.

        ``images`` and ``noise`` are [B,C,H,W], ``timesteps`` [B] and ``labels`` int64 [B]. In classification noise and
        timesteps are None, and labels may be soft: the probabilities of every class, float [B,K].
        """
        return self.task.loss(self.model, images, noise, timesteps, labels)

    def loss_weights(self, timesteps: Tensor) -> Tensor:
        """w(t) [B,1,1,1], float32, by which that loss weighs a sample at each of ``timesteps`` int64 [B]."""
        gamma, like = self.diffusion.min_snr_gamma, torch.ones(len(timesteps), 1, 1, 1, device=self.device)
        return like if gamma is None else diffusion.min_snr_weights(self.scheduler, timesteps, gamma, like)

    def draw_noise(self, generator: torch.Generator, samples: int) -> Tensor:
        """Noise as clients draw it, [samples,C,H,W] on the device."""
        return diffusion.add_offset(self.randn(generator, samples), self.diffusion.noise_offset, generator)

    @property
    def simulates_local_steps(self) -> bool:
        """Whether several local steps of one client can be simulated: of clipped or summed ones too little is known."""
        one_client = self.circumstances.num_clients == 1
        return one_client and self.circumstances.local_steps > 1 and self.scale_known

    def with_scale(self, scale: Tensor) -> "InversionProblem":
        """The problem in which ``gradient`` is known to be ``scale`` times the gradient; it shares model and budget."""
        calibrated = copy(self)
        calibrated.gradient = {name: value / scale for name, value in self.gradient.items()}
        calibrated.std = {name: value / scale for name, value in self.std.items()}
        calibrated.scale_known = True
        return calibrated

    def zeros(self) -> Tensor:
        """Zeros [N,C,H,W] on the device."""
        return torch.zeros(self.samples, *self.image_shape, device=self.device)

    def randn(self, generator: torch.Generator, samples: int | None = None) -> Tensor:
        """Standard normal images [samples or N,C,H,W] on the device; drawn on the CPU, so that all devices agree."""
        shape = (samples or self.samples, *self.image_shape)
        return torch.randn(shape, generator=generator).to(self.device)


CLIPPED = 1e-3
"""Relative distance of an update's norm from the clipping norm below which it counts as clipped."""
NOISE_DEVIATIONS = 3
"""Standard deviations of the noise's squared norm that are allowed for."""


def _may_be_clipped(values: Mapping[str, Tensor], clip_norm: float, noise_std: float) -> bool:
    """Whether the norm comes near ``clip_norm``, less what Gaussian noise of that deviation adds to its square."""
    entries = sum(value.numel() for value in values.values())
    squared = sum(float(value.double().square().sum()) for value in values.values())
    added = noise_std**2 * (entries - NOISE_DEVIATIONS * math.sqrt(2 * entries))
    return squared - added >= ((1 - CLIPPED) * clip_norm) ** 2
