"""A tiny client: its image, noise and timesteps are known to the test, and its update to the attack."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.inversion.problem import InversionProblem
from attacks.observation import Circumstances, DefenceDisclosure, Observation
from attacks.published.ddim_prior import load_prior
from attacks.published.gidm import RECIPES, Phases
from attacks.residual.unknowns import NoisyImageAndResidual
from fl_sim import diffusion, network
from fl_sim.classification import ClassificationTask
from fl_sim.diffusion import DiffusionTask
from fl_sim.draws import Draw
from fl_sim.network import LocalOptimizer, TrainingTask

SHAPE = (3, 8, 8)
MODEL = network.unet_config(8, block_out_channels=(16, 16), norm_num_groups=4)
CLASS_CONDITIONAL = MODEL | {"num_class_embeds": 10}


@dataclass(frozen=True)
class Victim:
    """An Observation and the truth behind it; images in [-1, 1]. A classifier's has neither noise nor timesteps."""

    observation: Observation
    images: Tensor
    noise: Tensor | None = None
    timesteps: Tensor | None = None
    labels: Tensor | None = None

    def psnr(self, images: Tensor) -> float:
        """Peak signal-to-noise ratio in dB of ``images`` in [0, 1]."""
        return psnr(images, (self.images + 1) / 2)


def psnr(images: Tensor, truth: Tensor) -> float:
    return float(-10 * torch.log10((images - truth).square().mean()))


def draw_images(generator: torch.Generator, samples: int = 1) -> Tensor:
    """Smooth random images in [-1, 1]."""
    coarse = torch.rand(samples, SHAPE[0], 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=SHAPE[1:], mode="bilinear")


def make_victim(
    timesteps: tuple[int, ...] = (400,),
    *,
    prediction_type: str = "epsilon",
    known: bool = False,
    local_steps: int = 1,
    optimizer: LocalOptimizer | None = None,
    model_config: dict[str, Any] = MODEL,
    seed: int = 0,
    images: Tensor | None = None,
    noise: Tensor | None = None,
    defend: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    defence: DefenceDisclosure | None = None,
    zero_snr: bool = False,
    labels: tuple[int, ...] | None = None,
    **recipe: Any,
) -> Victim:
    """A client that trains once on ``timesteps``; with ``optimizer`` it replies with a delta, else with a gradient.

    ``recipe`` may have ``min_snr_gamma``, ``noise_offset``, ``ema_decay`` and ``dtype``, as in Circumstances.
    ``defend`` changes the update before it is sent, ``defence`` is what the server knows of that. Attack with another
    seed than those near ``seed``: a start that repeats the client's noise would be a hint.
    """
    scheduler_config = diffusion.scheduler_config(prediction_type=prediction_type)
    if zero_snr:
        scheduler_config["rescale_betas_zero_snr"] = True
    generator = torch.Generator().manual_seed(seed + 1)
    if images is None:
        images = draw_images(generator, len(timesteps))
    if noise is None:
        noise = torch.randn(images.shape, generator=generator)
        noise = diffusion.add_offset(noise, recipe.get("noise_offset", 0.0), generator)
    steps = torch.tensor(timesteps)
    classes = None if labels is None else torch.tensor(labels)
    task = DiffusionTask.on(scheduler_config, recipe.pop("min_snr_gamma", None), recipe.pop("noise_offset", 0.0))
    draw = Draw(images, noise, steps, classes)
    return observe(task, model_config, draw, seed, known, local_steps, optimizer, defend, defence, **recipe)


def train(
    task: TrainingTask,
    model: nn.Module,
    draw: Draw,
    local_steps: int,
    optimizer: LocalOptimizer | None,
    ema_decay: float | None = None,
    dtype: str = "float32",
) -> dict[str, Tensor]:
    """The mean gradient of a draw or, with ``optimizer``, the delta of ``local_steps`` steps, rounded to ``dtype``."""
    kind = getattr(torch, dtype)
    if optimizer is None:
        return {name: value.to(kind).float() for name, value in task.gradient_and_loss(model, *draw)[0].items()}
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    local = optimizer.build(model.parameters())
    after = {name: torch.zeros_like(value) for name, value in weights.items()}
    shares = network.ema_shares(ema_decay, local_steps)
    for share, batch in zip(shares, draw.batches(len(draw.images) // local_steps), strict=True):
        local.zero_grad()
        task.loss(model, *batch).backward()
        for name, parameter in model.named_parameters():
            parameter.grad += optimizer.proximal_mu * (parameter.detach() - weights[name])
        if optimizer.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), optimizer.max_grad_norm)
        local.step()
        after = {name: after[name] + share * value.detach() for name, value in model.named_parameters()}
    return {name: value.to(kind).float() - weights[name] for name, value in after.items()}


def classifier_config(name: str = "LeNet", num_classes: int = 10) -> dict[str, Any]:
    """A small classifier of images of SHAPE."""
    small = {"LeNet": {}, "ConvNet": {"channels": [8, 16]}, "ResNet": {"channels": [8, 16], "norm_num_groups": 4}}
    return {"_class_name": name, "num_classes": num_classes, "image_size": list(SHAPE[1:]), **small[name]}


def make_classification_victim(
    labels: tuple[int, ...] = (3,),
    *,
    classifier: str = "LeNet",
    num_classes: int = 10,
    known: bool = False,
    local_steps: int = 1,
    optimizer: LocalOptimizer | None = None,
    seed: int = 0,
    images: Tensor | None = None,
    defend: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    defence: DefenceDisclosure | None = None,
    **recipe: Any,
) -> Victim:
    """A client that trains a classifier once on images of these ``labels``, N = B x ``local_steps``.

    The rest is as in ``make_victim``; ``known``: it reveals the labels.
    """
    if images is None:
        images = draw_images(torch.Generator().manual_seed(seed + 1), len(labels))
    task, draw = ClassificationTask(num_classes=num_classes), Draw(images, labels=torch.tensor(labels))
    config = classifier_config(classifier, num_classes)
    return observe(task, config, draw, seed, known, local_steps, optimizer, defend, defence, **recipe)


def observe(
    task: TrainingTask,
    model_config: dict[str, Any],
    draw: Draw,
    seed: int,
    known: bool,
    local_steps: int,
    optimizer: LocalOptimizer | None,
    defend: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    defence: DefenceDisclosure | None,
    **recipe: Any,
) -> Victim:
    """Train the network that ``seed`` initialises on ``draw``; the arguments are as in ``make_victim``."""
    torch.manual_seed(seed)
    model = network.build_model(model_config)
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    update = train(task, model, draw, local_steps, optimizer, **recipe)
    circumstances = Circumstances(
        task=task,
        round=1,
        client=0,
        update="gradient" if optimizer is None else "delta",
        batch_size=len(draw.images) // local_steps,
        local_steps=local_steps,
        local_optimizer=optimizer,
        defence=defence,
        image_shape=SHAPE,
        model=model_config,
        **recipe,
    )
    dictated = {"noise": draw.noise, "timesteps": draw.timesteps, "labels": draw.labels} if known else {}
    return Victim(Observation(circumstances, weights, defend(update), **dictated), *draw)


def summed(observation: Observation) -> Observation:
    """The same mean over a batch, as the sum of as many clients with one image each."""
    seen = observation.circumstances
    change = {"num_clients": seen.batch_size, "client": -1, "batch_size": 1}
    update = {name: value * seen.batch_size for name, value in observation.update.items()}
    return replace(observation, circumstances=Circumstances(**seen.model_dump() | change), update=update)


def assert_sum_like_batch(attack: Attack, batch: Observation, timesteps: list[int]) -> None:
    """The attack finds in the sum of as many clients what it finds in their batch."""
    of_batch, of_sum = (attack.reconstruct(shown, seed=101) for shown in (batch, summed(batch)))
    torch.testing.assert_close(of_sum.images, of_batch.images, rtol=0, atol=1e-3)
    assert of_sum.matching_loss == pytest.approx(of_batch.matching_loss, rel=1e-3)
    assert of_sum.timesteps.tolist() == timesteps


def true_unknowns(space: NoisyImageAndResidual, victim: Victim) -> list[Tensor]:
    """Those that stand for the victim's own x_t and r."""
    problem = space.problem
    x_t = diffusion.add_noise(problem.scheduler, victim.images, victim.noise, victim.timesteps)
    with torch.no_grad():
        prediction = diffusion.predict(problem.model, x_t, victim.timesteps, victim.labels)
    residual = prediction - diffusion.target(problem.scheduler, victim.images, victim.noise, victim.timesteps)
    return [x_t / space.image_scale, residual / space.residual_scale]


@pytest.fixture(scope="session")
def victim() -> Victim:
    return make_victim()


@pytest.fixture(scope="session")
def known_victim() -> Victim:
    return make_victim(known=True)


@pytest.fixture(scope="session")
def imagined() -> tuple[Victim, Tensor]:
    """A client whose image the global model makes in two steps, and the latent that it makes it from."""
    latent = 0.5 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(2))
    # Predicting x0, an untrained network makes images within their range.
    model = InversionProblem(make_victim(prediction_type="sample").observation, "cpu")
    images = load_prior(model, "global", steps=2)(latent)
    assert images.abs().max() < 1
    return make_victim(images=images, prediction_type="sample", known=True), latent


@pytest.fixture
def short_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GIDM that takes a second."""
    recipe = Phases(sampler_steps=2, latent_iterations=5, pixel_iterations=20, lr=0.1, solved_below=None)
    monkeypatch.setitem(RECIPES, "short", recipe)
