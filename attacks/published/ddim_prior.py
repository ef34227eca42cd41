"""A trained diffusion model as prior knowledge of what images look like: a deterministic map from latents to images."""

import copy
from pathlib import Path

from attacks.attack import AttackError
from attacks.inversion.problem import InversionProblem
from fl_sim import diffusion

GLOBAL = "global"
"""Names the model that the client was sent as the prior."""


def load_prior(problem: InversionProblem, source: str, steps: int) -> diffusion.DDIMSampler:
    """The prior G(z) that ``source`` names: ``global``, or the path of a checkpoint.

    It does not clip x0: clipping would zero the derivative by z wherever it acts.

    Raises:
        AttackError: if the checkpoint cannot be read or makes images of another shape than the problem's.
    """
    if source == GLOBAL:
        # A copy: matching shifts the problem's weights in place, which would spoil the sampler's graph.
        model, scheduler = copy.deepcopy(problem.model), problem.scheduler
    else:
        checkpoint = read_prior(source, problem.image_shape)
        model = checkpoint.build().to(problem.device).eval()
        scheduler = diffusion.build_scheduler(checkpoint.scheduler)
    return diffusion.DDIMSampler(model.requires_grad_(False), scheduler, steps, clip=False)


def read_prior(source: str, image_shape: tuple[int, int, int]) -> diffusion.Checkpoint:
    """The checkpoint at the path ``source``, in which ``~`` is the home folder.

    Raises:
        AttackError: if it cannot be read or makes no images of ``image_shape`` [C,H,W].
    """
    try:
        checkpoint = diffusion.read_checkpoint(Path(source).expanduser())
        checkpoint.check(image_shape)
    except (diffusion.ConfigError, RuntimeError) as error:  # RuntimeError: the home of nobody
        raise AttackError(f"prior {source!r} is no usable checkpoint: {error}") from error
    return checkpoint
