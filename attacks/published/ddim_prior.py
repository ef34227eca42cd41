"""A trained diffusion model as prior knowledge of what images look like: a deterministic map from latents to images."""

import copy
from pathlib import Path

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

    ``labels`` int64 [N] are those of the images, where the attacked network takes them; a prior may do without.
    It does not clip x0: clipping would zero the derivative by z wherever it acts.

    Raises:
        AttackError: if the checkpoint cannot be read or makes images of another shape than the problem's.
    """
    if source == GLOBAL:
        # A copy: matching shifts the problem's weights in place, which would spoil the sampler's graph.
        model, scheduler = copy.deepcopy(problem.model), problem.scheduler
    else:
        checkpoint = read_prior(source, problem.image_shape, problem.num_classes)
        labels = None if network.num_classes(checkpoint.model) is None else labels
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
    if known is not None and known != classes:
        raise AttackError(
            f"prior {source!r} is no usable checkpoint: it takes class labels (num_class_embeds = {known}), the "
            f"attacked network {'none' if classes is None else f'those of {classes}'}; allowed: as many, or none"
        )
    return checkpoint
