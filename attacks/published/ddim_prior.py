"""A trained diffusion model as prior knowledge of what images look like: a deterministic map from latents to images."""

import copy
from pathlib import Path

from diffusers import DDPMScheduler
from torch import Tensor, nn

from attacks.attack import AttackError
from attacks.inversion.problem import InversionProblem
from fl_sim import diffusion

GLOBAL = "global"
"""Names the model that the client was sent as the prior."""


class Prior:
    """G(z): the DDIM sampler (Song et al. 2020, arXiv 2010.02502, eq. 12 with sigma = 0), differentiable in z.

    It starts at the last timestep. Predicted images are not clipped: clipping would zero the derivative where it bites.
    """

    def __init__(self, model: nn.Module, scheduler: DDPMScheduler, steps: int) -> None:
        self.model = model.requires_grad_(False)
        self.sampler = diffusion.ddim_sampler(scheduler, steps, clip=False)

    def __call__(self, latents: Tensor) -> Tensor:
        """Images [N,C,H,W] for latents [N,C,H,W] ~ N(0, I)."""
        sample = latents
        for timestep in self.sampler.timesteps:
            prediction = diffusion.predict(self.model, sample, timestep.to(sample.device))
            sample = self.sampler.step(prediction, timestep, sample, return_dict=False)[0]
        return sample


def load_prior(problem: InversionProblem, source: str, steps: int) -> Prior:
    """The prior that ``source`` names: ``global``, or the path of a checkpoint.

    A checkpoint is a safetensors file of a model's state dict whose metadata key ``checkpoint`` holds JSON with
    ``model`` and ``scheduler`` (diffusers configurations).

    Raises:
        AttackError: if the checkpoint cannot be read or makes images of another shape than the problem's.
    """
    if source == GLOBAL:
        # A copy: matching shifts the problem's weights in place, which would spoil the sampler's graph.
        return Prior(copy.deepcopy(problem.model), problem.scheduler, steps)
    checkpoint = read_prior(source, problem.image_shape)
    model = diffusion.build_model(checkpoint.model)
    model.load_state_dict(checkpoint.weights)
    return Prior(model.to(problem.device).eval(), diffusion.build_scheduler(checkpoint.scheduler), steps)


def read_prior(source: str, image_shape: tuple[int, int, int]) -> diffusion.Checkpoint:
    """The checkpoint at the path ``source``, in which ``~`` is the home folder.

    Raises:
        AttackError: if it cannot be read or makes no images of ``image_shape`` [C,H,W].
    """
    try:
        checkpoint = diffusion.read_checkpoint(Path(source).expanduser())
        size = checkpoint.image_size
        if size is not None and (size, size) != image_shape[1:]:
            wanted = "x".join(map(str, image_shape[1:]))
            raise diffusion.ConfigError(f"it makes images of {size}x{size} pixels, not of {wanted}")
        diffusion.check_network(checkpoint.model, checkpoint.scheduler, image_shape)
    except (diffusion.ConfigError, RuntimeError) as error:  # RuntimeError: the home of nobody
        raise AttackError(f"prior {source!r} is no usable checkpoint: {error}") from error
    return checkpoint
