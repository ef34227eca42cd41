"""A trained diffusion model as prior knowledge of what images look like: a deterministic map from latents to images."""

import copy
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from attacks.attack import AttackError
from attacks.inversion.problem import InversionProblem
from attacks.memory import FLOAT, MIB, kept_for_backward
from attacks.observation import Circumstances
from fl_sim import diffusion, network
from fl_sim.checkpoint import Checkpoint, read_checkpoint

WEIGHT_COPIES = 7
"""The weights themselves, their derivative, Adam's point and two moments, the best point, and one more in passing."""
GLOBAL = "global"
"""Names the model that the client was sent as the prior."""


def load_prior(
    problem: InversionProblem,
    source: str,
    steps: int,
    labels: Tensor | None = None,
    *,
    clip: bool = False,
    recompute: bool = False,
) -> diffusion.DDIMSampler:
    """The prior G(z) that ``source`` names: ``global``, or the path of a checkpoint.

    ``labels`` int64 [N] are those of the images, where the attacked network takes them (``load_network``).
    Without ``clip`` it does not clip x0: clipping would zero the derivative by z wherever it acts. ``recompute`` is the
    sampler's. The network is frozen, and a copy: whoever tunes it changes no other.

    Raises:
        AttackError: if the checkpoint cannot be read or makes images of another shape than the problem's.
    """
    model, scheduler, labels = load_network(problem, source, labels)
    model.requires_grad_(False)
    return diffusion.DDIMSampler(model, scheduler, steps, clip=clip, labels=labels, recompute=recompute)


def load_network(
    problem: InversionProblem, source: str, labels: Tensor | None = None, images: int | None = None
) -> tuple[nn.Module, DDPMScheduler, Tensor | None]:
    """The network that ``source`` names, its noise schedule, and the labels int64 [images] that it is told.

    ``labels`` int64 [images] are those of the images, where the attacked network takes them. A prior may do without,
    and is told its null class where it has others. ``images`` are as many as the problem's, unless given.

    Raises:
        AttackError: if the checkpoint cannot be read or makes images of another shape than the problem's.
    """
    if source == GLOBAL:
        # A copy: matching shifts the problem's weights in place, which would spoil the sampler's graph.
        return copy.deepcopy(problem.model), problem.scheduler, labels
    checkpoint = read_prior(source, problem.image_shape, problem.num_classes)
    model = checkpoint.build().to(problem.device).eval()
    told = _told(checkpoint, labels, problem, images or problem.samples)
    return model, checkpoint.diffusion.noise_schedule(), told


def check_prior(attack: str, source: str, seen: Circumstances) -> None:
    """Refuse a ``source`` that is no prior of the images that ``attack`` is to find.

    Raises:
        AttackError: if the checkpoint is not usable (``read_prior``), or ``global`` names a classifier.
    """
    if source != GLOBAL:
        read_prior(source, seen.image_shape, seen.task.label_count(seen.model))
    elif not isinstance(seen.task, diffusion.DiffusionTask):
        raise AttackError(
            f"attack {attack!r}: prior = {GLOBAL!r} names the network that was sent, and that is a classifier; "
            "allowed: the path of a checkpoint of a diffusion model"
        )


def prior_memory(source: str, seen: Circumstances, kept_steps: int, weight_copies: int = 1) -> float:
    """MiB, about, that a search through a prior takes, with the graphs of ``kept_steps`` sampler steps.

    ``weight_copies``: the prior's weights and all that is as large; WEIGHT_COPIES where Adam tunes them.
    """
    classes, config = seen.task.label_count(seen.model), seen.model
    if source != GLOBAL:
        config = read_prior(source, seen.image_shape, classes).model
    model, labelled = network.outline(config), network.num_classes(config) is not None
    weights = FLOAT * network.count_parameters(model.parameters())

    def predict(images: Tensor, timesteps: Tensor) -> Tensor:
        return diffusion.predict(model, images, timesteps, timesteps if labelled else None)

    return (weight_copies * weights + kept_steps * kept_for_backward(predict, seen.image_shape, seen.num_samples)) / MIB


def read_prior(source: str, image_shape: tuple[int, int, int], classes: int | None = None) -> Checkpoint:
    """The checkpoint at the path ``source``, in which ``~`` is the home folder.

    Raises:
        AttackError: if it cannot be read, makes no images of ``image_shape`` [C,H,W], or takes labels of other classes
            than the ``classes`` of the attacked network.
    """
    try:
        checkpoint = read_checkpoint(Path(source).expanduser())
        checkpoint.check(image_shape)
        checkpoint.diffusion.noise_schedule()
    except (network.ConfigError, RuntimeError) as error:  # RuntimeError: the home of nobody
        raise AttackError(f"prior {source!r} is no usable checkpoint: {error}") from error
    known = network.num_classes(checkpoint.model)
    if known not in (None, classes) and _null_class(checkpoint) is None:
        raise AttackError(
            f"prior {source!r} is no usable checkpoint: it takes class labels (num_class_embeds = {known}), the "
            f"attacked network {'none' if classes is None else f'those of {classes}'}; allowed: as many, none, or one "
            "that was trained with dropped labels (label_dropout in its metadata)"
        )
    return checkpoint


def _null_class(checkpoint: Checkpoint) -> int | None:
    """The label that stands for no class, the last one, where some labels were dropped in training; else None."""
    known = network.num_classes(checkpoint.model)
    return known - 1 if known is not None and checkpoint.notes.get("label_dropout") else None


def _told(checkpoint: Checkpoint, labels: Tensor | None, problem: InversionProblem, images: int) -> Tensor | None:
    """The labels int64 [images] that the prior is told: the images' if its classes are as many, else the null class.

    None where it takes none.
    """
    known, null = network.num_classes(checkpoint.model), _null_class(checkpoint)
    if known is None:
        return None
    if labels is not None and problem.num_classes in (known, null):
        return labels
    assert null is not None  # read_prior refuses it
    return torch.full((images,), null, device=problem.device)
