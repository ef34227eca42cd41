"""A trained diffusion model as prior knowledge of what images look like: a deterministic map from latents to images."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from attacks.attack import AttackError
from attacks.inversion.problem import InversionProblem
from fl_sim import diffusion, network
from fl_sim.checkpoint import Checkpoint, read_checkpoint

GLOBAL = "global"
"""Names the model that the client was sent as the prior."""


def load_prior(
    problem: InversionProblem, source: str, steps: int, labels: Tensor | None = None
) -> diffusion.DDIMSampler:
    """The prior G(z) that ``source`` names: ``global``, or the path of a checkpoint.

    ``labels`` int64 [N] are those of the images, where the attacked network takes them; a prior may do without, and is
    told its null class where it has others. x0 is not clipped, which would zero the derivative by z wherever it acts.

    Raises:
        AttackError: if the checkpoint cannot be read or makes images of another shape than the problem's.
    """
    if source == GLOBAL:
        # A copy: matching shifts the problem's weights in place, which would spoil the sampler's graph.
        model, scheduler = copy.deepcopy(problem.model), problem.scheduler
    else:
        checkpoint = read_prior(source, problem.image_shape, problem.num_classes)
        labels = _told(checkpoint, labels, problem)
        model = checkpoint.build().to(problem.device).eval()
        scheduler = checkpoint.diffusion.noise_schedule()
    return diffusion.DDIMSampler(model.requires_grad_(False), scheduler, steps, clip=False, labels=labels)


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


def _told(checkpoint: Checkpoint, labels: Tensor | None, problem: InversionProblem) -> Tensor | None:
    """The labels int64 [N] that the prior is told: those of the images if its classes are as many, else the null class.

    None where it takes none.
    """
    known, null = network.num_classes(checkpoint.model), _null_class(checkpoint)
    if known is None:
        return None
    if labels is not None and problem.num_classes in (known, null):
        return labels
    assert null is not None  # read_prior refuses it
    return torch.full((problem.samples,), null, device=problem.device)
