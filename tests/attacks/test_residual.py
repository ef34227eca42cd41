import math

import pytest
import torch

from attacks.attack import AttackError, create
from attacks.lbfgs import LBFGSRun
from attacks.matching import GradientMatching, balanced_squared_error
from attacks.problem import InversionProblem
from attacks.residual import KnownSpace, PrivateSpace, Residual, expected_residual, search_starts
from fl_sim import diffusion
from fl_sim.diffusion import LocalOptimizer
from tests.attacks.conftest import MODEL, Victim, make_victim

WIDE = MODEL | {"block_out_channels": [32, 32]}


def matching_of(problem: InversionProblem, space: PrivateSpace | KnownSpace) -> GradientMatching:
    return GradientMatching(problem, space.training_loss, balanced_squared_error(problem.gradient))


def true_unknowns(space: PrivateSpace, victim: Victim) -> list[torch.Tensor]:
    problem = space.problem
    x_t = diffusion.add_noise(problem.scheduler, victim.images, victim.noise, victim.timesteps)
    with torch.no_grad():
        prediction = diffusion.predict(problem.model, x_t, victim.timesteps)
    residual = prediction - diffusion.target(problem.scheduler, victim.images, victim.noise, victim.timesteps)
    return [x_t, residual / space.expected_residual]


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_started_at_the_truth_it_stays_there(prediction_type):
    victim = make_victim((80, 600), prediction_type=prediction_type, model_config=WIDE)
    problem = InversionProblem(victim.observation, "cpu")
    space = PrivateSpace(problem)
    assert torch.equal(space.timesteps, victim.timesteps)
    run = LBFGSRun(matching_of(problem, space), true_unknowns(space, victim))
    assert run.advance(10) < 1e-9
    torch.testing.assert_close(space.images(run.unknowns), victim.images, rtol=0, atol=1e-3)


def test_started_at_the_known_truth_it_stays_there(known_victim):
    problem = InversionProblem(known_victim.observation, "cpu")
    space = KnownSpace(problem)
    run = LBFGSRun(matching_of(problem, space), [known_victim.images * space.signal_scale])
    assert run.advance(10) < 1e-9
    torch.testing.assert_close(space.images(run.unknowns), known_victim.images, rtol=0, atol=1e-3)


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_it_finds_image_and_timestep(prediction_type):
    victim = make_victim((200,), prediction_type=prediction_type)
    result = create("residual", {"max_evaluations": 600}).reconstruct(victim.observation, seed=1)
    assert victim.psnr(result.images) > 50
    assert result.timesteps.tolist() == [200]
    assert result.matching_loss < 1e-6
    assert result.evaluations < 600


def test_it_uses_what_the_server_dictated():
    victim = make_victim((700, 150), known=True)
    result = create("residual", {"max_evaluations": 300}).reconstruct(victim.observation, seed=1)
    assert victim.psnr(result.images) > 50
    assert result.timesteps.tolist() == [700, 150]


def test_a_single_sgd_step_is_inverted_like_a_gradient():
    victim = make_victim((350,), optimizer=LocalOptimizer(lr=0.5, momentum=0.9))
    result = create("residual", {"max_evaluations": 600}).reconstruct(victim.observation, seed=1)
    assert victim.psnr(result.images) > 40


def test_timesteps_that_cannot_be_told_are_one_line():
    with pytest.raises(AttackError, match=r"timesteps cannot be read off this update \(margin"):
        Residual().reconstruct(make_victim((300, 300)).observation, seed=0)


def test_the_expected_residual_is_of_the_size_of_the_true_one():
    victim = make_victim((50, 900), prediction_type="sample", model_config=WIDE)
    space = PrivateSpace(InversionProblem(victim.observation, "cpu"))
    rms = true_unknowns(space, victim)[1].square().mean(dim=(1, 2, 3)).sqrt()
    assert ((rms > 0.5) & (rms < 2)).all()
    assert expected_residual(space.problem, space.timesteps).shape == (2, 1, 1, 1)


class ScriptedRun:
    """Its loss falls by ``factor`` in every slice."""

    def __init__(self, problem: InversionProblem, factor: float) -> None:
        self.problem, self.factor, self.losses = problem, factor, []

    @property
    def loss(self) -> float:
        return self.losses[-1] if self.losses else math.inf

    def advance(self, evaluations: int) -> float:
        self.problem.evaluations += evaluations
        self.losses.append(self.factor ** (len(self.losses) + 1))
        return self.loss


def search(problem: InversionProblem, factors: list[float], budget: int) -> tuple[int, list[int]]:
    """Index of the run that was returned, and the number of slices every run got."""
    runs = [ScriptedRun(problem, factor) for factor in factors]
    best = search_starts(runs, problem, budget, solved_below=2e-6)
    return runs.index(best), [len(run.losses) for run in runs]


def test_a_start_without_progress_is_left_for_the_next(victim):
    problem = InversionProblem(victim.observation, "cpu")
    index, slices = search(problem, [0.95, 0.1, 0.1], 2000)
    assert index == 1
    assert slices == [4, 6, 0]


def test_the_best_start_gets_what_is_left_of_the_budget(victim):
    problem = InversionProblem(victim.observation, "cpu")
    index, slices = search(problem, [0.95, 0.8, 0.9], 1000)
    assert index == 1
    assert slices[0] == slices[2] == 4
    assert problem.evaluations == 1000


def test_the_search_ends_when_every_start_broke_down(victim):
    problem = InversionProblem(victim.observation, "cpu")
    _, slices = search(problem, [math.inf, math.inf], 1000)
    assert slices == [1, 1]
