from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from attacks.inversion.problem import InversionProblem
from attacks.timesteps.ghost import Ghost
from attacks.timesteps.recovery import recover_timesteps
from attacks.timesteps.time_inputs import label_inputs, time_inputs
from attacks.timesteps.time_layers import time_layers, time_projections
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import make_victim
from tests.own_networks import config, trusting

TIMESTEPS = torch.tensor([3, 400, 977])
PROJECTIONS = ["shift", "scale"]


@pytest.fixture(autouse=True)
def _trusted() -> Iterator[None]:
    with trusting("build", "labelled", "needs_numbers", "reads_the_timesteps", "uses_a_layer_twice"):
        yield


def problem_of(function: str = "build", timesteps: tuple[int, ...] = (90, 350), **arguments: int) -> InversionProblem:
    return InversionProblem(make_victim(timesteps, model_config=config(function, **arguments)).observation, "cpu")


def test_layers_that_see_the_timestep_alone_are_found_whatever_they_are_called():
    found = time_inputs(problem_of(), TIMESTEPS)
    assert [each.layers for each in found] == [["clock.0"], ["clock.2"], PROJECTIONS]


def test_their_inputs_are_what_the_network_computes():
    problem = problem_of()
    network = problem.model
    seen: list[Tensor] = []
    handle = network.get_submodule("scale").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), TIMESTEPS)
    handle.remove()
    projections = time_projections(problem, TIMESTEPS)
    assert projections is not None
    assert projections.layers == PROJECTIONS
    assert torch.allclose(projections.inputs, seen[0].double(), rtol=1e-5)


def test_a_table_of_timesteps_is_a_layer_of_one_hot_inputs():
    problem = problem_of(steps=1000)
    table, first, *_ = time_inputs(problem, TIMESTEPS)
    assert table.layers == ["table"]
    assert table.inputs.argmax(dim=1).equal(TIMESTEPS)
    assert table.inputs.sum() == 3
    assert first.layers == ["clock.0"]
    assert time_layers(problem, TIMESTEPS)[0].gradient.shape == (32, 1000)


def test_what_depends_on_a_moved_parameter_is_not_known():
    moved = ["clock.2.bias", "shift.weight"]
    assert [each.layers for each in time_inputs(problem_of(), TIMESTEPS, moved=moved)] == [["clock.0"], ["clock.2"]]


def test_layers_are_told_apart_by_what_they_see_of_timestep_and_label():
    victim = make_victim((90, 350), labels=(4, 1), model_config=config("labelled", num_class_embeds=10))
    problem = InversionProblem(victim.observation, "cpu")
    alone, paired = [["clock.0"], ["clock.2"]], [PROJECTIONS]
    labels = torch.tensor([4, 1, 4])
    assert [each.layers for each in time_inputs(problem, TIMESTEPS)] == alone
    assert [each.layers for each in time_inputs(problem, TIMESTEPS, labels)] == alone + paired
    table, second = label_inputs(problem, labels)
    assert (table.layers, second.layers) == (["kinds.0"], ["kinds.1"])
    assert table.inputs.argmax(dim=1).equal(labels)
    rows = problem.model.get_parameter("kinds.0.weight").detach()
    assert torch.equal(second.inputs, rows[labels].double())


def test_a_layer_with_two_inputs_is_left_out():
    found = time_inputs(problem_of("uses_a_layer_twice"), TIMESTEPS)
    assert [each.layers for each in found] == [["clock.0"], ["clock.2"], ["scale"]]


def test_a_network_that_needs_the_images_numbers_keeps_its_time_layers_hidden():
    problem = problem_of("needs_numbers", (400,))
    assert time_inputs(problem, TIMESTEPS) == []
    assert recover_timesteps(problem).timesteps.tolist() == [-1]


@pytest.mark.parametrize("steps", [None, 1000])
def test_the_timesteps_of_a_network_of_ones_own_are_read_off(steps: int | None):
    arguments = {} if steps is None else {"steps": steps}
    assert recover_timesteps(problem_of(timesteps=(90, 350, 777), **arguments)).timesteps.tolist() == [90, 350, 777]


def test_they_are_read_off_after_local_steps():
    victim = make_victim((90, 350), local_steps=2, optimizer=LocalOptimizer(lr=0.03), model_config=config("build"))
    assert recover_timesteps(InversionProblem(victim.observation, "cpu")).timesteps.tolist() == [90, 350]


def test_what_is_computed_from_a_ghost_is_one_and_the_rest_is_not():
    ghost, numbers = Ghost.of(torch.ones(2, 3)), torch.ones(3)
    mixed = torch.cat([torch.nn.functional.silu(ghost) @ torch.ones(3, 3), numbers[None]])
    assert isinstance(mixed, Ghost)
    assert mixed.shape == (3, 3)
    assert mixed.device == numbers.device
    assert isinstance(ghost.new_zeros(2), Ghost)
    assert not isinstance(torch.ones(ghost.shape[0], device=ghost.device), Ghost)
    ghost.mul_(numbers)
    assert isinstance(ghost, Ghost)


def test_a_ghost_is_never_taken_for_numbers():
    ghost, numbers = Ghost.of(torch.ones(3)), torch.ones(3)
    with pytest.raises(TypeError, match="writes a ghost into a tensor with numbers"):
        numbers.add_(ghost)
    assert numbers.tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError):
        float(ghost.sum())
