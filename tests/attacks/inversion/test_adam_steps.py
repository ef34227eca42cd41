import math

import pytest
import torch
from torch import Tensor

from attacks.inversion.adam_steps import (
    known_first_step,
    step_problems,
    tells_signs,
    two_steps_signs,
    weights_before_steps,
)
from attacks.inversion.problem import InversionProblem
from attacks.observation import DefenceDisclosure
from fl_sim import diffusion, network
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import Victim, make_victim, summed

ADAM = LocalOptimizer(name="adam", lr=1e-3)
BETAS = (0.9, 0.999)


def mean_step(gradients: list[Tensor], optimizer: LocalOptimizer) -> Tensor:
    """What torch's Adam takes off weights of zero, over the number of steps and the learning rate."""
    weights = torch.zeros_like(gradients[0], requires_grad=True)
    adam = optimizer.build([weights])
    for gradient in gradients:
        weights.grad = gradient
        adam.step()
    return -weights.detach() / (optimizer.lr * len(gradients))


@pytest.fixture(scope="module")
def victim() -> Victim:
    return make_victim((90, 350), local_steps=2, optimizer=ADAM)


@pytest.mark.parametrize("ratio", [1e-3, 1.0, 1e3])
def test_both_signs_are_exact_whatever_the_gradients_sizes(ratio):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 10_000, generator=generator, dtype=torch.float64)
    step = mean_step([first, ratio * second], ADAM)
    signs = two_steps_signs(step, torch.zeros_like(step), BETAS)
    assert torch.equal(signs[0], first.sign())
    assert torch.equal(signs[1], second.sign())


def test_what_noise_hides_is_left_open():
    without_second = (1 + 0.9 / 1.9 * math.sqrt(1.999 / 0.999)) / 2
    step = torch.tensor([0.9, without_second + 1e-3, -without_second, 0.2, 0.01, 0.9])
    std = torch.tensor([1e-2, 1e-2, 1e-2, 1e-2, 1e-4, math.inf])
    first, second = two_steps_signs(step, std, BETAS)
    assert first.tolist() == [1, 1, -1, 1, 0, 0]  # two steps far above eps do not add up to 0.01
    assert second.tolist() == [1, 0, 0, -1, 0, 0]


def test_the_weights_of_the_second_step_are_known(victim):
    problem = InversionProblem(victim.observation, "cpu")
    sent, moved = weights_before_steps(problem, known_first_step(problem))
    model = network.build_model(victim.observation.circumstances.model)
    model.load_state_dict(victim.observation.weights)
    draw = (victim.images[:1], victim.noise[:1], victim.timesteps[:1])
    gradients = diffusion.gradient(model, problem.scheduler, *draw)
    for name, gradient in gradients.items():
        assert torch.equal(sent[name], victim.observation.weights[name])
        far_above_eps = gradient.abs() > 1e-5
        expected = sent[name] - ADAM.lr * gradient.sign()
        assert torch.allclose(moved[name][far_above_eps], expected[far_above_eps], rtol=0, atol=1e-6)


def test_each_step_is_a_problem_of_signs_at_its_own_weights(victim):
    problem = InversionProblem(victim.observation, "cpu")
    for step, part in enumerate(step_problems(problem)):
        draw = [values[step : step + 1] for values in (victim.images, victim.noise, victim.timesteps)]
        truth = diffusion.gradient(part.model, part.scheduler, *draw)
        wrong = [truth[name].sign() != sign for name, sign in part.gradient.items()]
        assert torch.cat([entries.flatten() for entries in wrong]).float().mean() < 2e-3
        assert part.signs_only
        assert part.samples == 1
        part.budget.spend()
    assert problem.budget.spent == 0
    state = problem.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in victim.observation.weights.items())


def test_of_a_known_draw_each_step_gets_its_own():
    known = make_victim((90, 350), local_steps=2, optimizer=ADAM, known=True)
    parts = step_problems(InversionProblem(known.observation, "cpu"))
    assert [part.timesteps.tolist() for part in parts] == [[90], [350]]
    assert torch.equal(parts[1].noise, known.noise[1:])


@pytest.mark.parametrize(
    ("changes", "tells"),
    [
        ({}, True),
        ({"local_steps": 1}, False),
        ({"local_steps": 3}, False),
        ({"local_optimizer": LocalOptimizer(lr=0.1)}, False),
        ({"local_optimizer": LocalOptimizer(name="adam", lr=0.1, betas=(0.3, 0.999))}, False),  # a second step wins
        ({"local_optimizer": LocalOptimizer(name="adam", lr=0.1, betas=(0.9, 0.5))}, False),
        ({"defence": DefenceDisclosure(noise_std=1e-6)}, True),
        ({"defence": DefenceDisclosure(clip_norm=1.0)}, False),
        ({"defence": DefenceDisclosure(signs=True)}, False),
    ],
)
def test_it_takes_two_steps_of_one_client_at_a_known_scale(victim, changes, tells):
    assert tells_signs(victim.observation.circumstances.model_copy(update=changes)) is tells


def test_a_sum_of_clients_does_not_tell():
    batch = make_victim((90, 350, 10, 20), local_steps=2, optimizer=ADAM).observation
    assert not tells_signs(summed(batch).circumstances)
