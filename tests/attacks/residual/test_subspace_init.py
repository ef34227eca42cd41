"""Noisy images from the spaces that layers' inputs span."""

import pytest
import torch

from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.observation import DefenceDisclosure
from attacks.registry import create
from attacks.residual.linear_residual import LinearResidual
from attacks.residual.minimiser import Candidate
from attacks.residual.subspace_init import SubspaceInit, SubspaceObjective, has_duplicates
from fl_sim import diffusion, network
from tests.attacks.conftest import MODEL, SHAPE, Victim, make_victim
from tests.attacks.finite_differences import assert_derivative, double_problem

DEEP = network.unet_config(8, block_out_channels=(16, 16, 32), norm_num_groups=4)
"""Its levels have 64, 16 and 4 positions."""


def noisy_images(victim: Victim) -> torch.Tensor:
    scheduler = diffusion.build_scheduler(victim.observation.circumstances.task.scheduler)
    return diffusion.add_noise(scheduler, victim.images, victim.noise, victim.timesteps)


SETTINGS = SubspaceInit()


def objective_of(victim: Victim) -> SubspaceObjective:
    problem = InversionProblem(victim.observation, "cpu")
    return SubspaceObjective(problem, victim.timesteps, SETTINGS)


def determines_x_t(victim: Victim) -> bool:
    return objective_of(victim).determines_x_t(SETTINGS.min_equations)


@pytest.mark.parametrize("timesteps", [(300,), (60, 500)])
@pytest.mark.parametrize("attention", [False, True])
def test_the_true_inputs_lie_inside_and_others_do_not(timesteps, attention):
    config = network.unet_config(8, block_out_channels=(16, 32, 32), norm_num_groups=4, attention=attention)
    victim = make_victim(timesteps, model_config=config)
    objective = objective_of(victim)
    assert objective.determines_x_t(SETTINGS.min_equations)
    x_t = noisy_images(victim)
    assert abs(float(objective([x_t.requires_grad_()])[0])) < 1e-4
    assert objective([torch.randn(x_t.shape, requires_grad=True)])[0] > 0.1
    assert objective.problem.budget.spent == 2


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_they_tell_the_noisy_image_from_any_start_without_the_residual(prediction_type):
    victim = make_victim((300,), model_config=DEEP, prediction_type=prediction_type)
    x_t = noisy_images(victim)
    for seed, scale in ((101, 1.0), (102, 0.1)):
        start = scale * torch.randn(x_t.shape, generator=torch.Generator().manual_seed(seed))
        run = LBFGSRun(objective_of(victim), [start])
        run.advance(300)
        assert (run.point[0] - x_t).norm() < 0.05 * x_t.norm()


def test_the_derivative_is_that_of_the_value():
    victim = make_victim((300,), model_config=DEEP)
    objective = SubspaceObjective(double_problem(victim.observation), victim.timesteps, SETTINGS)
    assert_derivative(objective, [(1, *SHAPE)], relative=1e-6, step=1e-5)


def test_the_scale_of_the_gradient_does_not_count():
    victim = make_victim((300,), model_config=DEEP)
    scaled = make_victim((300,), model_config=DEEP, defend=lambda update: {n: 1e-3 * v for n, v in update.items()})
    point = [torch.randn(1, *SHAPE, requires_grad=True)]
    torch.testing.assert_close(objective_of(victim)(point)[0], objective_of(scaled)(point)[0], rtol=1e-4, atol=0)


def test_a_batch_with_more_positions_than_channels_tells_too_little():
    """The inner level of the network has 16 positions and 16 channels."""
    assert determines_x_t(make_victim((100,)))
    assert not determines_x_t(make_victim((100, 600)))


DEFENDED = {
    "noise": (lambda v: v + torch.randn_like(v), DefenceDisclosure(noise_std=1.0)),
    "signs": (torch.sign, DefenceDisclosure(signs=True)),
    "top-k": (lambda v: v * (v.abs() > v.abs().median()), DefenceDisclosure(sparsified=True)),
}


@pytest.mark.parametrize(("change", "defence"), DEFENDED.values(), ids=DEFENDED)
def test_what_is_left_of_a_defended_gradient_tells_too_little(change, defence):
    victim = make_victim(
        (300,), model_config=DEEP, defend=lambda update: {n: change(v) for n, v in update.items()}, defence=defence
    )
    assert not determines_x_t(victim)


def find(victim: Victim, evaluations: int = 500) -> tuple[torch.Tensor | None, int]:
    problem = InversionProblem(victim.observation, "cpu")
    generator = torch.Generator().manual_seed(101)
    run = SETTINGS.search(problem, victim.timesteps, generator, problem.budget.more(evaluations))
    return None if run is None else run.point[0].detach(), problem.budget.spent


FAR_AWAY = torch.full((1, *SHAPE), 100.0)
"""Where a search gets nowhere."""


def test_a_search_that_gets_nowhere_is_left_for_another_start(monkeypatch):
    victim = make_victim((300,), model_config=DEEP)
    starts = [FAR_AWAY, FAR_AWAY, torch.zeros(1, *SHAPE)]
    monkeypatch.setattr(SubspaceInit, "draw", lambda *_: starts.pop(0))
    found, evaluations = find(victim)
    x_t = noisy_images(victim)
    assert found is not None
    assert (found - x_t).norm() < 0.05 * x_t.norm()
    assert not starts
    assert evaluations < 350


def test_what_is_not_told_is_none_and_does_not_take_the_whole_budget(monkeypatch):
    victim = make_victim((300,), model_config=DEEP)
    assert find(victim, 10) == (None, 10)
    monkeypatch.setattr(SubspaceInit, "draw", lambda *_: FAR_AWAY)
    found, evaluations = find(victim, 2000)
    assert found is None
    assert evaluations < 700


def test_random_starts_are_smooth_images_as_they_are_at_the_timestep():
    """Which leaves next to nothing of them at a late one."""
    sizes = []
    for timestep in (0, 999):
        problem = InversionProblem(make_victim((timestep,), model_config=DEEP).observation, "cpu")
        generator = torch.Generator().manual_seed(101)
        start = SubspaceInit(start_noise=0).draw(problem, torch.tensor([timestep]), generator)
        assert (start[..., 1:] - start[..., :-1]).abs().mean() < start.abs().mean()  # of white noise 1.4 times
        sizes.append(float(start.std()))
    assert 0.1 < sizes[0] < 1
    assert sizes[1] < 0.02


def test_the_residual_that_fits_leaves_the_joint_search_nothing_to_do(monkeypatch):
    victim, advanced = make_victim((300,), model_config=MODEL), []
    advance = Candidate.advance
    monkeypatch.setattr(Candidate, "advance", lambda *arguments: advanced.append(1) or advance(*arguments))
    result = create("residual", {"max_evaluations": 1200}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 60
    assert result.evaluations < 300
    assert not advanced


def test_one_image_twice_is_told_from_two():
    """Twice the same lies inside the spaces as well as once, so that it must not pass for what was found."""
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    assert has_duplicates(torch.stack([images[0], images[0] + 0.01 * images[1]]), 0.1)
    assert not has_duplicates(images, 0.1)
    assert not has_duplicates(images[:1], 0.1)


def test_x_t_and_the_residual_take_turns_until_they_solve_the_candidate(monkeypatch):
    """Where r is first solved for at an x_t that is not good enough."""
    victim, starts = make_victim((300,), model_config=MODEL), []
    build = LinearResidual.__init__
    monkeypatch.setattr(LinearResidual, "__init__", lambda *given: starts.append(given[4].norm()) or build(*given))
    early = {"first_starts": {"subspace_init": {"solved_below": 1e-4, "slice_evaluations": 10}}}
    result = create("residual", {"max_evaluations": 1200, **early}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 60
    assert len(starts) > 1
    assert starts[0] == 0
    assert min(starts[1:]) > 0
