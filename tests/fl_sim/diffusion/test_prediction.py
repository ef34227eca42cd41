from typing import Any

import pytest
import torch

from fl_sim import diffusion
from fl_sim.diffusion import PREDICTION_TYPES
from tests.fl_sim.diffusion.toy import SCHEDULES, draw, scheduler


def test_the_velocity_target_is_diffusers_own_and_the_others_are_what_their_names_say() -> None:
    x0, noise, timesteps = draw()
    velocity = diffusion.target(scheduler("v_prediction"), x0, noise, timesteps)
    torch.testing.assert_close(velocity, scheduler().get_velocity(x0, noise, timesteps))
    assert diffusion.target(scheduler("epsilon"), x0, noise, timesteps) is noise
    assert diffusion.target(scheduler("sample"), x0, noise, timesteps) is x0


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_residual_gives_the_image_back(prediction_type: str) -> None:
    ddpm, (x0, noise, timesteps) = scheduler(prediction_type), [value.double() for value in draw()]
    timesteps = timesteps.long()
    x_t = diffusion.add_noise(ddpm, x0, noise, timesteps)
    prediction = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    residual = prediction - diffusion.target(ddpm, x0, noise, timesteps)
    found = diffusion.x0_from_residual(ddpm, x_t, prediction, residual, timesteps)
    torch.testing.assert_close(found, x0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_target_gives_the_noise_back(prediction_type: str) -> None:
    ddpm, (x0, noise, timesteps) = scheduler(prediction_type), [value.double() for value in draw()]
    timesteps = timesteps.long()
    x_t, known = (f(ddpm, x0, noise, timesteps) for f in (diffusion.add_noise, diffusion.target))
    torch.testing.assert_close(diffusion.noise_from_target(ddpm, x_t, known, timesteps), noise)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("changes", SCHEDULES, ids=str)
def test_every_schedule_gives_the_image_back_where_there_is_one(changes: dict[str, Any], prediction_type: str) -> None:
    ddpm = diffusion.build_scheduler(diffusion.scheduler_config(prediction_type=prediction_type) | changes)
    last = len(ddpm.betas) - 1
    timesteps = torch.tensor([0, last // 2, last])
    x0, noise, _ = (value.double() for value in draw())
    x_t, known = (f(ddpm, x0, noise, timesteps) for f in (diffusion.add_noise, diffusion.target))
    found = diffusion.x0_from_residual(ddpm, x_t, known, torch.zeros_like(x0), timesteps)
    told = diffusion.determines_x0(ddpm, timesteps)
    hidden = prediction_type == "epsilon" and changes.get("rescale_betas_zero_snr", False)
    assert told.tolist() == [True, True, not hidden]
    torch.testing.assert_close(found[told], x0[told])
    assert not found[~told].any()
