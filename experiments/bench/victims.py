"""The benchmark's victims: clients with photographs on which no checkpoint was trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attacks.observation import Circumstances, DefenceDisclosure, Observation, ThreatModel
from experiments.bench.cases import IMAGES_OF_OWN_NETWORK, NETWORKS, Case
from experiments.checkpoint import load_checkpoint
from fl_sim.checkpoint import Checkpoint
from fl_sim.client_app import local_training
from fl_sim.config import DataSettings
from fl_sim.diffusion import DiffusionTask, scheduler_config
from fl_sim.draws import Draw, derive_seed, draw_image_indices, draw_noise_and_timesteps, seeded_generator
from fl_sim.images.sources import list_images
from fl_sim.network import FACTORY, build_model, num_classes, trainable_names, trust
from fl_sim.wire import Recipe, rounded

PHOTOGRAPHS = ("ihc", "hubble")
"""On which no checkpoint was trained. Which victims of them prompted changes of an attack: docs/research-log.md."""

Update = dict[str, Tensor]


@dataclass(frozen=True)
class Victim:
    """What the server sees of a client, and the truth: images float32 [N,C,H,W] in [0, 1] and timesteps int64 [N].

    ``labels`` int64 [N] are those of a class-conditional network, else None.
    """

    observation: Observation
    images: Tensor
    timesteps: Tensor
    photographs: tuple[str, ...]
    labels: Tensor | None = None


def make_victim(case: Case, checkpoint: Path | None, seed: int, index: int) -> Victim:
    """Victim ``index`` of a case, computed on the CPU so that it is the same for every attack and device.

    Its image, noise, timesteps and initial weights are drawn from ``seed`` and depend on ``index``, on the network and
    on the number of images and the timesteps to draw from, and on nothing else in ``case``. The labels of a
    class-conditional network are drawn uniformly: what a label says of an image is nothing to an untrained network.
    """
    start = load_checkpoint(checkpoint) if checkpoint else _untrained(case, seed, index)
    image_shape = start.image_shape or IMAGES_OF_OWN_NETWORK
    recipe = Recipe(
        model=start.model,
        task=start.task,
        image_shape=image_shape,
        update="weights" if case.optimizer else "gradient",
        batch_size=case.batch_size,
        local_steps=case.local_steps,
        optimizer=case.optimizer,
    )
    channels, *sides = image_shape
    held = list_images(DataSettings(name=case.images, photographs=PHOTOGRAPHS, image_size=sides))
    # Victim after victim deals on from one shuffled deck, so that no photograph comes twice before all have come.
    dealt = draw_image_indices(derive_seed(seed, "images"), case.samples * (index + 1), len(held))
    chosen = dealt[-case.samples :].tolist()
    first, last = case.timesteps
    noise_seed = derive_seed(seed, "noise", case.network, first, last, index)
    noise, steps_from_first = draw_noise_and_timesteps(noise_seed, case.samples, image_shape, last - first + 1)
    labels = _draw_labels(start, case.samples, derive_seed(seed, "labels", case.network, index))
    draw = Draw(held.decode(chosen, channels), noise, first + steps_from_first, labels)
    update, defence = _sent(case, recipe, start.weights, draw, derive_seed(seed, "defence", index))
    circumstances = Circumstances(
        task=start.task,
        round=1,
        client=index if case.num_clients == 1 else -1,
        update="delta" if case.optimizer else "gradient",
        num_examples=case.samples,
        batch_size=case.batch_size,
        local_steps=case.local_steps,
        local_optimizer=case.optimizer,
        defence=defence if case.defence_known else None,
        dtype=case.dtype,
        image_shape=image_shape,
        model=start.model,
        num_clients=case.num_clients,
    )
    known = draw[1:] if case.threat is ThreatModel.KNOWN else ()
    observation = Observation(circumstances, start.weights, update, *known)
    photographs = tuple(held.photographs[i] for i in chosen)
    return Victim(observation, (draw.images + 1) / 2, first + steps_from_first, photographs, labels)


def _draw_labels(start: Checkpoint, samples: int, seed: int) -> Tensor | None:
    classes = num_classes(start.model)
    return None if classes is None else torch.randint(classes, (samples,), generator=seeded_generator(seed))


def _untrained(case: Case, seed: int, index: int) -> Checkpoint:
    config = NETWORKS[case.network]
    if FACTORY in config:
        trust([config[FACTORY]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights", case.network, index))
        weights = build_model(config).state_dict()
    return Checkpoint(weights, config, DiffusionTask.on(scheduler_config(prediction_type=case.prediction_type)), {})


def _sent(
    case: Case, recipe: Recipe, weights: Update, draw: Draw, seed: int
) -> tuple[Update, DefenceDisclosure | None]:
    """What the server receives: every client's update after its defence and rounding, summed over the clients."""
    sent: list[Update] = []
    defence, generator = None, seeded_generator(seed)
    for of_client in draw.batches(case.samples_per_client):
        update, _ = local_training(recipe, weights, of_client, "cpu")
        if case.optimizer:
            update = {name: update[name] - weights[name] for name in trainable_names(recipe.model)}
        if case.defence != "none":
            update, defence = DEFENCES[case.defence](update, case.strength, generator)
        if case.dtype != "float32":
            update = _in_sixteen_bits(update, weights if case.optimizer else {}, case.dtype)
        sent.append(update)
    return {name: sum((update[name] for update in sent[1:]), sent[0][name]) for name in sent[0]}, defence


def _in_sixteen_bits(update: Update, before: Update, dtype: str) -> Update:
    """An update that is sent in ``dtype``; where there are weights ``before``, the new weights are what is sent."""
    if not before:
        return {name: rounded(value, dtype) for name, value in update.items()}
    return {name: rounded(before[name] + value, dtype) - before[name] for name, value in update.items()}


def _noise(update: Update, strength: float, generator: torch.Generator) -> tuple[Update, DefenceDisclosure]:
    """Gaussian noise whose norm is expected to be ``strength`` times the update's."""
    std = strength * _norm(update) / math.sqrt(sum(value.numel() for value in update.values()))
    noised = {name: value + std * torch.randn(value.shape, generator=generator) for name, value in update.items()}
    return noised, DefenceDisclosure(noise_std=std)


def _clip(update: Update, strength: float, _: torch.Generator) -> tuple[Update, DefenceDisclosure]:
    """Scaled down to ``strength`` times its norm."""
    return {name: value * strength for name, value in update.items()}, DefenceDisclosure(
        clip_norm=strength * _norm(update)
    )


def _top_k(update: Update, strength: float, _: torch.Generator) -> tuple[Update, DefenceDisclosure]:
    """The largest entries, a share ``strength`` of all, the others zero."""
    sizes = torch.cat([value.abs().flatten() for value in update.values()])
    threshold = sizes.topk(math.ceil(strength * len(sizes))).values[-1]
    kept = {name: torch.where(value.abs() >= threshold, value, 0.0) for name, value in update.items()}
    return kept, DefenceDisclosure(sparsified=True)


def _signs(update: Update, _: float, __: torch.Generator) -> tuple[Update, DefenceDisclosure]:
    return {name: value.sign() for name, value in update.items()}, DefenceDisclosure(signs=True)


DEFENCES: dict[str, Callable[[Update, float, torch.Generator], tuple[Update, DefenceDisclosure]]] = {
    "noise": _noise,
    "clip": _clip,
    "top-k": _top_k,
    "signs": _signs,
}


def _norm(update: Update) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in update.values()))
