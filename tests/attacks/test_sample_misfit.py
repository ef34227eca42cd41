import pytest
import torch

from attacks.problem import InversionProblem
from attacks.sample_misfit import sample_misfits
from fl_sim import diffusion
from tests.attacks.conftest import MODEL, make_victim

WIDE = MODEL | {"block_out_channels": (32, 32)}
TIMESTEPS = (50, 300, 700)


@pytest.fixture(scope="module")
def batch():
    victim = make_victim(TIMESTEPS, model_config=WIDE)
    return victim, InversionProblem(victim.observation, "cpu")


def test_the_truth_fits(batch):
    victim, problem = batch
    assert sample_misfits(problem, victim.timesteps, problem.gradient).max() < 1e-6


def test_the_sample_with_another_image_does_not_fit_and_the_others_do(batch):
    victim, problem = batch
    noise = victim.noise.clone()
    noise[1] = torch.randn(noise[1].shape, generator=torch.Generator().manual_seed(5))
    changed = diffusion.gradient(problem.model, problem.scheduler, victim.images, noise, victim.timesteps)
    misfits = sample_misfits(problem, victim.timesteps, changed)
    assert misfits[1] > 0.1
    assert misfits[[0, 2]].max() < 1e-6


def test_without_time_projections_nobody_is_blamed():
    def unshared(update):
        return {name: value for name, value in update.items() if "time_emb_proj" not in name}

    problem = InversionProblem(make_victim(TIMESTEPS, model_config=WIDE, defend=unshared).observation, "cpu")
    assert sample_misfits(problem, torch.tensor(TIMESTEPS), {}).tolist() == [0, 0, 0]
