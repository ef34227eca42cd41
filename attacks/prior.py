"""A trained diffusion model as prior knowledge of what images look like: a deterministic map from latents to images."""

import copy
import json
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from attacks.attack import AttackError
from attacks.problem import InversionProblem
from fl_sim import diffusion

GLOBAL = "global"
"""Names the model that the client was sent as the prior."""


class Prior:
    """G(z): the DDIM sampler (Song et al. 2020, arXiv 2010.02502, eq. 12 with sigma = 0), differentiable in z.

    It starts at the last timestep. Predicted images are not clipped: clipping would zero the derivative where it bites.
    """

    def __init__(self, model: nn.Module, scheduler: DDPMScheduler, steps: int) -> None:
        self.model = model.requires_grad_(False)
        self.sampler = DDIMScheduler(
            num_train_timesteps=scheduler.config.num_train_timesteps,
            trained_betas=scheduler.betas.tolist(),
            prediction_type=scheduler.config.prediction_type,
            clip_sample=False,
            timestep_spacing="trailing",
        )
        self.sampler.set_timesteps(min(steps, scheduler.config.num_train_timesteps))

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
    model, scheduler = _read_checkpoint(Path(source))
    size = model.config.sample_size or problem.image_shape[1:]
    made = (model.config.in_channels, *((size, size) if isinstance(size, int) else size))
    if made != problem.image_shape:
        raise AttackError(f"prior {source!r} makes images of shape {made}, the client's have {problem.image_shape}")
    return Prior(model.to(problem.device).eval(), scheduler, steps)


def _read_checkpoint(path: Path) -> tuple[Any, DDPMScheduler]:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["checkpoint"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        model = diffusion.build_model(facts["model"])
        model.load_state_dict(weights)
        return model, diffusion.build_scheduler(facts["scheduler"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AttackError(f"prior {str(path)!r} is no readable checkpoint: {reason}") from error
