from typing import Any

import pytest
import torch
from torch import Tensor

from fl_sim import diffusion
from fl_sim.network import ConfigError
from tests.fl_sim.diffusion.toy import draw, scheduler


def test_noising_is_diffusers_own() -> None:
    x0, noise, timesteps = draw()
    torch.testing.assert_close(
        diffusion.add_noise(scheduler(), x0, noise, timesteps), scheduler().add_noise(x0, noise, timesteps)
    )


def test_alphas_cumprod_are_linear_between_integer_timesteps() -> None:
    like, integers = torch.zeros(1, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 400, 998, 999])

    def signal_power(timesteps: Tensor) -> Tensor:
        return diffusion.signal_and_noise_scale(scheduler(), timesteps, like)[0].square().flatten()

    torch.testing.assert_close(signal_power(integers.double()), signal_power(integers))
    between = torch.tensor([400.25], dtype=torch.float64, requires_grad=True)
    below, above = signal_power(torch.tensor([400, 401]))
    torch.testing.assert_close(signal_power(between)[0], 0.75 * below + 0.25 * above)
    (slope,) = torch.autograd.grad(signal_power(between).sum(), between)
    torch.testing.assert_close(slope[0], above - below)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "'DDIMScheduler' is not allowed"),
        ({"prediction_type": "score"}, "'score' is unknown"),
        ({"beta_schedule": "no-such-schedule"}, "cannot be built"),
        ({"no_such_key": 1}, "unknown keys: no_such_key"),
    ],
)
def test_a_schedule_that_cannot_be_built_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        diffusion.build_scheduler(diffusion.scheduler_config() | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_betas": [0.1, 0.2]}, r"has 2 betas for num_train_timesteps = 1000"),
        ({"beta_end": 1.5}, r"betas go from 0.0001 to 1.5; allowed: 0 to 1"),
        ({"beta_start": -0.1}, r"betas go from -0.1 to 0.02; allowed: 0 to 1"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, r"betas go from nan to nan"),
        ({"num_train_timesteps": 0}, "scheduler"),
        ({"num_train_timesteps": "many"}, "scheduler"),
    ],
)
def test_what_is_no_noise_schedule_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        diffusion.build_scheduler(diffusion.scheduler_config() | changes)
    assert "\n" not in str(caught.value)


def test_a_configuration_without_a_number_of_timesteps_has_diffusers_own() -> None:
    assert diffusion.num_train_timesteps({}) == 1000
    assert diffusion.num_train_timesteps({"num_train_timesteps": 7}) == 7
