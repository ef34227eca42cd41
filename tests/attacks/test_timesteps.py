from dataclasses import replace

import pytest
import torch

from attacks.problem import InversionProblem
from attacks.timesteps import MINIMAL_MARGIN, recover_timesteps
from fl_sim.diffusion import LocalOptimizer
from tests.attacks.conftest import MODEL, make_victim

# The time embedding of 16 numbers that the tiny network has spans too little for many timesteps.
WIDE = MODEL | {"block_out_channels": [32, 32]}


@pytest.mark.parametrize("batch", range(1, 9))
def test_the_timesteps_of_a_batch_are_exact(batch):
    timesteps = torch.randperm(1000, generator=torch.Generator().manual_seed(batch))[:batch]
    victim = make_victim(tuple(timesteps.tolist()), model_config=WIDE)
    recovered = recover_timesteps(InversionProblem(victim.observation, "cpu"))
    assert recovered.known
    assert torch.equal(recovered.timesteps, timesteps.sort().values)
    assert recovered.margin > MINIMAL_MARGIN


@pytest.mark.parametrize("timestep", [0, 1, 2, 500, 998, 999])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_ends_of_the_schedule_are_told_from_their_neighbours(timestep, prediction_type):
    victim = make_victim((timestep,), prediction_type=prediction_type)
    assert recover_timesteps(InversionProblem(victim.observation, "cpu")).timesteps.tolist() == [timestep]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_local_steps_do_not_hide_them(momentum):
    optimizer = LocalOptimizer(lr=0.01, momentum=momentum)
    victim = make_victim((90, 350, 777), local_steps=3, optimizer=optimizer, model_config=WIDE)
    assert recover_timesteps(InversionProblem(victim.observation, "cpu")).timesteps.tolist() == [90, 350, 777]


def assert_unknown(problem: InversionProblem) -> None:
    recovered = recover_timesteps(problem)
    assert not recovered.known
    assert recovered.timesteps.tolist() == [-1] * problem.samples
    assert recovered.margin < MINIMAL_MARGIN


def test_a_thin_margin_is_unknown(victim):
    problem = InversionProblem(victim.observation, "cpu")
    name = "time_embedding.linear_1.weight"
    problem.gradient[name] = torch.randn(problem.gradient[name].shape, generator=torch.Generator().manual_seed(0))
    assert_unknown(problem)


def test_the_same_timestep_twice_is_unknown():
    assert_unknown(InversionProblem(make_victim((300, 300)).observation, "cpu"))


def test_more_samples_than_the_embedding_is_wide_are_unknown():
    assert_unknown(InversionProblem(make_victim(tuple(range(0, 1000, 60))).observation, "cpu"))


def test_a_time_mlp_that_was_not_trained_tells_nothing(victim):
    update = {name: value for name, value in victim.observation.update.items() if "time_embedding" not in name}
    assert_unknown(InversionProblem(replace(victim.observation, update=update), "cpu"))
