"""How good the model is that a federation trains: what a defence costs, beside what it protects.

Both figures are computed offline, on small images, from fixed draws: equal weights give equal figures on every run.

- The held-out loss is the training loss on images that no client holds: the share ``data.held_out`` of the images, else
  photographs that the bundled checkpoint has not seen either. In diffusion it is given for
  ranges of the timestep too: a model may be bad at one end of the noise schedule and good on average.
- The held-out accuracy of a classifier is the share of those images whose class it names.
- The patch distance compares the model's samples with the clients' images: the Fréchet distance between Gaussians
  fitted to their small patches. It sees colours, contrast and texture, not whether a picture shows anything.

A class-conditional model gets the classes of held-out images. The photographs belong to none of its classes: for them,
and for samples, it gets every class in turn.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from experiments.settings import ExperimentSettings
from fl_sim import classification, diffusion, network
from fl_sim.config import DataSettings
from fl_sim.diffusion import DiffusionTask
from fl_sim.draws import derive_seed, seeded_generator
from fl_sim.images.bundled import HELD_OUT_PHOTOGRAPHS
from fl_sim.images.classes import class_numbers
from fl_sim.images.partition import held_out_images
from fl_sim.images.sources import list_images
from fl_sim.wire import Recipe

LOSS = "heldout_loss"
ACCURACY = "heldout_accuracy"
DISTANCE = "patch_distance"

STRATA = (0, 21, 201, 501, 801, 951)
"""First timesteps of the strata where T = 1000; they scale with T."""

HELD_OUT_IMAGES = 16
REFERENCE_IMAGES = 256
"""At most so many of the clients' images are compared with the samples."""

PATCH = 4
SAMPLER_STEPS = 10

_DEFINITIONS = {
    "diffusion": {
        LOSS: f"mean DDPM loss of {HELD_OUT_IMAGES} images that no client holds, at one timestep per image "
        "and stratum; the strata weighted by their width",
        DISTANCE: f"squared Fréchet distance between Gaussian fits of all {PATCH}x{PATCH} patches, in [0, 1], of "
        f"samples ({SAMPLER_STEPS} DDIM steps) and of the clients' images",
    },
    "classification": {
        LOSS: "mean cross-entropy of the images that no client holds",
        ACCURACY: "share of these images whose class the model names",
    },
}


def definitions(task: str) -> dict[str, str]:
    """What each figure of a model of this task is, by the beginning of its columns' names."""
    return _DEFINITIONS[task]


def strata(num_train_timesteps: int) -> list[range]:
    """The timesteps 0..T-1 in strata, from almost clean to almost pure noise; a short schedule has fewer."""
    firsts = sorted({first * num_train_timesteps // 1000 for first in STRATA})
    return [range(*bounds) for bounds in zip(firsts, [*firsts[1:], num_train_timesteps], strict=True)]


def column(stratum: range) -> str:
    """What the rounds table calls the held-out loss of a stratum."""
    return f"{LOSS}_{stratum.start}_{stratum.stop - 1}"


def heldout_loss(
    model: nn.Module, scheduler: DDPMScheduler, images: Tensor, labels: Tensor | None = None
) -> dict[str, float]:
    """The loss on ``images`` [N,C,H,W] in [-1, 1], by column: each stratum's, and the mean over all timesteps.

    Every image meets one timestep of each stratum, evenly spread over it, and noise of its own, always the same.
    ``labels`` int64 [N] are those that the network is told, where it takes any.
    """
    steps = int(scheduler.config.num_train_timesteps)
    found: dict[str, float] = {}
    mean = 0.0
    for index, stratum in enumerate(strata(steps)):
        noise = torch.randn(images.shape, generator=seeded_generator(derive_seed(0, LOSS, index))).to(images.device)
        spread = torch.linspace(stratum.start, stratum.stop - 1, len(images)).round().long().to(images.device)
        with torch.no_grad():
            found[column(stratum)] = diffusion.loss(model, scheduler, images, noise, spread, labels).item()
        mean += found[column(stratum)] * len(stratum) / steps
    return {LOSS: mean} | found


def classifier_figures(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean cross-entropy and accuracy on ``images`` [N,C,H,W] in [-1, 1] of classes ``labels`` int64 [N], by column."""
    with torch.no_grad():
        logits = classification.predict(model, images)
    loss = nn.functional.cross_entropy(logits, labels).item()
    return {LOSS: loss, ACCURACY: classification.accuracy(logits, labels)}


def every_class_in_turn(classes: int | None, count: int) -> Tensor | None:
    """Labels int64 [count] from 0, over again after the last of ``classes``; None where the network takes none."""
    return None if classes is None else torch.arange(count) % classes


def sample(
    model: nn.Module,
    scheduler: DDPMScheduler,
    image_shape: tuple[int, ...],
    count: int,
    labels: Tensor | None = None,
) -> Tensor:
    """Images [count, *image_shape] in [0, 1] that ``diffusion.DDIMSampler`` makes of fixed noise.

    x0 is clipped to its range in every step, as in DDPM's own sampler. ``labels`` int64 [count] are those that the
    network is told, where it takes any.
    """
    sampler = diffusion.DDIMSampler(model, scheduler, SAMPLER_STEPS, clip=True, labels=labels)
    device = next(model.parameters()).device
    latents = torch.randn(count, *image_shape, generator=seeded_generator(derive_seed(0, "samples"))).to(device)
    with torch.no_grad():
        return ((sampler(latents) + 1) / 2).clamp(0, 1).cpu()


def patch_distance(first: Tensor, second: Tensor) -> float:
    """Squared Fréchet distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) between patches of images in [0, 1].

    Each side is [N,C,H,W]; m and C are mean and covariance of all its overlapping PATCH x PATCH patches (Dowson and
    Landau 1982). 0 for the same images, about 5 between photographs and uniform noise, NaN where a model broke.
    """
    if not (first.isfinite().all() and second.isfinite().all()):
        return math.nan
    (mean1, covariance1), (mean2, covariance2) = _moments(first), _moments(second)
    root = _root(covariance1)
    cross = torch.linalg.eigvalsh(root @ covariance2 @ root).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * cross
    return max(0.0, distance.item())


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    patches = nn.functional.unfold(images.double(), PATCH).transpose(1, 2).flatten(0, 1)
    return patches.mean(0), patches.T.cov(correction=0)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@dataclass(frozen=True)
class Utility:
    """Measures the models of one run; an evaluator's tool, like the leakage table: it may look at private images."""

    settings: ExperimentSettings
    recipe: Recipe

    @cached_property
    def held_out(self) -> tuple[int, ...]:
        """Indices of the images that are held out for the evaluator, in order; none with ``data.held_out`` = 0."""
        return tuple(sorted(held_out_images(self.settings.data, self.settings.client.seed or 0)))

    @cached_property
    def photographs(self) -> tuple[str, ...]:
        """The bundled photographs that no client holds, for a diffusion model without held-out images."""
        data = self.settings.data
        if self.held_out or not isinstance(self.recipe.task, DiffusionTask):
            return ()
        held = data.photographs if data.name == "bundled" else ()
        return tuple(name for name in HELD_OUT_PHOTOGRAPHS if name not in held)

    @property
    def sources(self) -> list[str]:
        """What the model is measured on, in words."""
        return [f"{len(self.held_out)} images"] if self.held_out else list(self.photographs)

    def not_computed(self) -> dict[str, str]:
        """Why a figure is missing, by its name."""
        if self.settings.utility.every == 0 or self.held_out or self.photographs:
            return {}
        if isinstance(self.recipe.task, DiffusionTask):
            return {LOSS: f"the clients hold all of {', '.join(HELD_OUT_PHOTOGRAPHS)}"}
        return dict.fromkeys((LOSS, ACCURACY), "data.held_out = 0, so that clients hold all images")

    def due(self, server_round: int) -> bool:
        """Whether to measure the model after this round; before the first and after the last it always is."""
        every = self.settings.utility.every
        return every > 0 and (server_round % every == 0 or server_round == self.settings.federation.rounds)

    @property
    def samples_wanted(self) -> bool:
        """Whether to sample from the final model."""
        wanted = self.settings.utility.every > 0 and self.settings.utility.samples > 0
        return wanted and isinstance(self.recipe.task, DiffusionTask)

    @property
    def images_needed(self) -> list[int]:
        """Indices of the images that are decoded to measure the model."""
        return [*self.reference, *(self._measured if self.settings.utility.every > 0 else ())]

    @property
    def reference(self) -> list[int]:
        """Indices of the images that the samples are compared with; none where nothing is sampled."""
        return _evenly(len(list_images(self.settings.data)), REFERENCE_IMAGES) if self.samples_wanted else []

    def measure(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """The held-out figures of a model by column; empty where nothing is held out."""
        if not (self.held_out or self.photographs):
            return {}
        model, images, labels = self._model(weights), self._held_out_images, self._held_out_labels
        if isinstance(self.recipe.task, DiffusionTask):
            return heldout_loss(model, self.recipe.task.noise_schedule(), images, labels)
        assert labels is not None
        return classifier_figures(model, images, labels)

    def sample(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Images sampled from a model, [N,C,H,W] in [0, 1], and their patch distance by column."""
        count = self.settings.utility.samples
        assert isinstance(self.recipe.task, DiffusionTask)
        model, labels = self._model(weights), self._every_class_in_turn(count)
        images = sample(model, self.recipe.task.noise_schedule(), self.recipe.image_shape, count, labels)
        return images, {DISTANCE: patch_distance(images, self._reference)}

    def _model(self, weights: Mapping[str, Tensor]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and the federation's draws must not move
            model = network.build_model(self.recipe.model)
        model.load_state_dict(dict(weights))
        return model.to(self._device).eval()  # dropout belongs to the training

    @property
    def _label_count(self) -> int | None:
        return self.recipe.task.label_count(self.recipe.model)

    def _every_class_in_turn(self, count: int) -> Tensor | None:
        labels = every_class_in_turn(self._label_count, count)
        return None if labels is None else labels.to(self._device)

    @property
    def _device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def _measured(self) -> list[int]:
        """Those of the held-out images that are used: in diffusion a few, as each is denoised many times."""
        if isinstance(self.recipe.task, DiffusionTask):
            return [self.held_out[place] for place in _evenly(len(self.held_out), HELD_OUT_IMAGES)]
        return list(self.held_out)

    @cached_property
    def _held_out_images(self) -> Tensor:
        channels = self.recipe.image_shape[0]
        if self.held_out:
            return list_images(self.settings.data).decode(self._sound, channels).to(self._device)
        images = list_images(DataSettings(photographs=self.photographs, image_size=self.settings.data.image_size))
        return images.decode(_evenly(len(images), HELD_OUT_IMAGES), channels).to(self._device)

    @cached_property
    def _held_out_labels(self) -> Tensor | None:
        """What the network is told of the held-out images' classes, or is to tell; None where it uses no labels."""
        if self._label_count is None or not self.held_out:
            return self._every_class_in_turn(len(self._held_out_images))
        numbers = class_numbers(
            list_images(self.settings.data),
            self._label_count,
            self.recipe.task.labels_named,
            self.recipe.label_dropout > 0,
        )
        return torch.tensor([numbers[index] for index in self._sound], device=self._device)

    @property
    def _sound(self) -> list[int]:
        return list(filter(list_images(self.settings.data).is_sound, self._measured))

    @cached_property
    def _reference(self) -> Tensor:
        images = list_images(self.settings.data)
        sound = filter(images.is_sound, self.reference)
        return (images.decode(sound, self.recipe.image_shape[0]) + 1) / 2


def _evenly(population: int, count: int) -> list[int]:
    """At most ``count`` of the indices 0..population-1, evenly spread over all of them."""
    return torch.linspace(0, population - 1, min(count, population)).round().long().tolist()
