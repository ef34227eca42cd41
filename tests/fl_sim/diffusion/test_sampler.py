from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_sim import diffusion
from fl_sim.diffusion import PREDICTION_TYPES, DDIMSampler
from tests.fl_sim.diffusion.toy import SCHEDULES

SHAPE = (3, 8, 8)


class NoNoise(nn.Module):
    """Predicts that there is none."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return torch.zeros_like(sample)


@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 10), (16, 16), (4, 16)])
def test_it_starts_at_the_last_timestep_and_clips_only_if_told(timesteps: int, steps: int) -> None:
    scheduler = diffusion.build_scheduler(diffusion.scheduler_config(timesteps))
    plain, clipping = (DDIMSampler(NoNoise(), scheduler, steps, clip=clip) for clip in (False, True))
    assert len(plain.timesteps) == min(timesteps, steps)
    latents = torch.full((1, *SHAPE), 3.0)
    torch.testing.assert_close(plain(latents), latents / scheduler.alphas_cumprod[-1].sqrt())
    torch.testing.assert_close(clipping(latents), torch.ones(1, *SHAPE))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("changes", SCHEDULES, ids=str)
def test_it_starts_where_there_is_an_image(changes: dict[str, Any], prediction_type: str) -> None:
    ddpm = diffusion.build_scheduler(diffusion.scheduler_config(prediction_type=prediction_type) | changes)
    sampler = DDIMSampler(NoNoise(), ddpm, 10, clip=False)
    assert bool(diffusion.determines_x0(ddpm, sampler.timesteps).all())
