"""The metric that shortens the end of a search."""

import pytest
import torch

from attacks.inversion.gradient_matching import GradientMatching, flatten
from attacks.inversion.problem import InversionProblem
from attacks.observation import DefenceDisclosure
from attacks.residual.kfac_metric import KFACMetric
from attacks.residual.unknowns import possible_unknowns
from fl_sim import diffusion
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import Victim, make_victim
from tests.attacks.finite_differences import assert_derivative, to_double


def noisy_images(problem: InversionProblem, victim: Victim) -> torch.Tensor:
    return diffusion.add_noise(problem.scheduler, victim.images, victim.noise, victim.timesteps)


def test_an_error_is_measured_by_the_second_moments_of_a_patch():
    victim = make_victim((300,))
    problem = InversionProblem(victim.observation, "cpu")
    x_t = noisy_images(problem, victim)
    distance = KFACMetric().distance(problem, x_t, victim.timesteps, 0.0)
    observed = flatten(list(problem.gradient.values()))
    torch.testing.assert_close(distance(torch.zeros_like(observed), observed)[0], torch.tensor(1.0))
    assert distance(observed, observed)[0] == 0

    padded = torch.nn.functional.pad(x_t, (1, 1, 1, 1))[0]
    patches = torch.stack([padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)], dim=-1).view(-1, 9)
    moments = (patches.T @ patches).double()
    inverse = torch.linalg.inv(moments + 0.1 * moments.diagonal().mean() * torch.eye(9))
    generator, costs = torch.Generator().manual_seed(3), []
    for _ in range(2):
        error = {name: torch.zeros_like(value) for name, value in problem.gradient.items()}
        error["conv_in.weight"] = torch.randn(error["conv_in.weight"].shape, generator=generator)
        rows = error["conv_in.weight"].view(-1, 9).double()
        value, _ = distance(observed + flatten(list(error.values())), observed)
        costs.append(float(value) / float((rows @ inverse * rows).sum()))
    assert costs[0] == pytest.approx(costs[1], rel=1e-3)


def test_the_derivative_is_that_of_the_value():
    victim = make_victim((300,))
    problem = InversionProblem(victim.observation, "cpu")
    [unknowns] = possible_unknowns(problem)
    to_double(problem)
    distance = KFACMetric().distance(problem, noisy_images(problem, victim).double(), victim.timesteps, 1.5)
    for derivative, relative in (("double-backward", 1e-5), ("one-sided", 1e-2)):
        matching = GradientMatching(problem, unknowns.training_loss, distance, derivative)
        assert_derivative(matching, [tuple(victim.images.shape)] * 2, relative, step=1e-5)


CLOUDED = {
    "noise": DefenceDisclosure(noise_std=1e-3),
    "signs": DefenceDisclosure(signs=True),
    "top-k": DefenceDisclosure(sparsified=True),
    "clip": DefenceDisclosure(clip_norm=1e-3),
}


@pytest.mark.parametrize("defence", CLOUDED.values(), ids=CLOUDED)
def test_only_an_exact_gradient_is_measured_so(defence):
    dropped = make_victim((300,), defence=defence, defend=lambda u: {n: v * (v > 0) for n, v in u.items()})
    assert not KFACMetric().applies_to(InversionProblem(dropped.observation, "cpu"))
    assert KFACMetric().applies_to(InversionProblem(make_victim((300,)).observation, "cpu"))
    assert KFACMetric().applies_to(
        InversionProblem(make_victim((300,), optimizer=LocalOptimizer(lr=0.1)).observation, "cpu")
    )
