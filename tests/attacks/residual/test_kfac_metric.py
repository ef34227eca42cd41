"""The metric that shortens the end of a search."""

import pytest
import torch

from attacks.inversion.entry_weights import distance_for
from attacks.inversion.gradient_matching import GradientMatching, flatten
from attacks.inversion.problem import InversionProblem
from attacks.observation import Defence
from attacks.residual.attack import Residual
from attacks.residual.kfac_metric import can_be_whitened, whitened_squared_error
from attacks.residual.unknowns import NEARLY_RIGHT, spaces
from fl_sim import diffusion
from fl_sim.diffusion import LocalOptimizer
from tests.attacks.conftest import Victim, make_victim, true_unknowns
from tests.attacks.finite_differences import assert_derivative, to_double


def noisy_images(problem: InversionProblem, victim: Victim) -> torch.Tensor:
    return diffusion.add_noise(problem.scheduler, victim.images, victim.noise, victim.timesteps)


def test_an_error_is_measured_by_the_second_moments_of_a_patch():
    victim = make_victim((300,))
    problem = InversionProblem(victim.observation, "cpu")
    x_t = noisy_images(problem, victim)
    distance = whitened_squared_error(problem, x_t, victim.timesteps, balance=0.0)
    observed = flatten(list(problem.gradient.values()))
    torch.testing.assert_close(distance(torch.zeros_like(observed), observed)[0], torch.tensor(1.0))
    assert distance(observed, observed)[0] == 0

    padded = torch.nn.functional.pad(x_t, (1, 1, 1, 1))[0]
    patches = torch.stack([padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)], dim=-1).view(-1, 9)
    moments = (patches.T @ patches).double()
    inverse = torch.linalg.inv(moments + 0.1 * moments.diagonal().mean() * torch.eye(9))
    source, costs = torch.Generator().manual_seed(3), []
    for _ in range(2):
        error = {name: torch.zeros_like(value) for name, value in problem.gradient.items()}
        error["conv_in.weight"] = torch.randn(error["conv_in.weight"].shape, generator=source)
        rows = error["conv_in.weight"].view(-1, 9).double()
        value, _ = distance(observed + flatten(list(error.values())), observed)
        costs.append(float(value) / float((rows @ inverse * rows).sum()))
    assert costs[0] == pytest.approx(costs[1], rel=1e-3)


def test_the_derivative_is_that_of_the_value():
    victim = make_victim((300,))
    problem = InversionProblem(victim.observation, "cpu")
    [space] = spaces(problem)
    to_double(problem)
    distance = whitened_squared_error(problem, noisy_images(problem, victim).double(), victim.timesteps, balance=1.5)
    for derivative, relative in (("double-backward", 1e-5), ("one-sided", 1e-2)):
        matching = GradientMatching(problem, space.training_loss, distance, derivative)
        assert_derivative(matching, [tuple(victim.images.shape)] * 2, relative, step=1e-5)


CLOUDED = {
    "noise": Defence(noise_std=1e-3),
    "signs": Defence(signs=True),
    "top-k": Defence(sparsified=True),
    "clip": Defence(clip_norm=1e-3),
}


@pytest.mark.parametrize("defence", CLOUDED.values(), ids=CLOUDED)
def test_only_an_exact_gradient_is_measured_so(defence):
    dropped = make_victim((300,), defence=defence, defend=lambda u: {n: v * (v > 0) for n, v in u.items()})
    assert not can_be_whitened(InversionProblem(dropped.observation, "cpu"))
    assert can_be_whitened(InversionProblem(make_victim((300,)).observation, "cpu"))
    assert can_be_whitened(InversionProblem(make_victim((300,), optimizer=LocalOptimizer(lr=0.1)).observation, "cpu"))


def test_a_search_that_is_nearly_right_goes_over_and_its_losses_stay_matching_losses():
    victim = make_victim((300,))
    problem = InversionProblem(victim.observation, "cpu")
    [space] = spaces(problem)
    source = torch.Generator().manual_seed(1)
    near = [
        truth + 0.3 * torch.randn(truth.shape, generator=source) * truth.std() for truth in true_unknowns(space, victim)
    ]
    run = Residual()._run(space, near, distance_for(problem, balance=1.5))
    while run.loss >= NEARLY_RIGHT:
        assert run.objective is run.matching
        run.advance(10)
    assert run.objective is not run.matching
    for _ in range(3):
        before = run.loss
        assert run.advance(20) == run.matching.value(run.unknowns) < before
    assert run.losses[-1] < 1e-4


def test_a_sample_that_does_not_fit_keeps_the_search_where_it_is(monkeypatch):
    victim = make_victim((300,))
    problem = InversionProblem(victim.observation, "cpu")
    [space] = spaces(problem)
    run = Residual()._run(space, true_unknowns(space, victim), distance_for(problem, balance=1.5))
    monkeypatch.setattr(run, "misfits", lambda: torch.tensor([0.5]))
    assert run.advance(5) < NEARLY_RIGHT
    assert run.objective is run.matching
    monkeypatch.undo()
    run.advance(5)
    assert run.objective is not run.matching


@pytest.mark.parametrize("slope", [1.0, float("nan")])
def test_an_objective_that_leads_astray_is_given_up(slope):
    victim = make_victim((300,))
    problem = InversionProblem(victim.observation, "cpu")
    [space] = spaces(problem)
    run = Residual()._run(space, true_unknowns(space, victim), distance_for(problem, balance=1.5))
    source = torch.Generator().manual_seed(1)

    def astray(unknowns):
        return torch.tensor(1.0), [slope * torch.randn(u.shape, generator=source) for u in unknowns]

    run.sharper = lambda _: astray
    run.advance(5)
    assert run.objective is astray
    loss, point = run.loss, [u.detach().clone() for u in run.unknowns]
    assert run.advance(10) == loss
    assert all(map(torch.equal, run.unknowns, point))
    assert run.objective is run.matching
    assert run.sharper is None
