from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attacks.inversion.entry_weights import balanced_weights
from attacks.inversion.gradient_matching import (
    Distance,
    GradientMatching,
    cosine_distance,
    flatten,
    squared_error,
    weighted_cosine_distance,
    weighted_squared_error,
)
from attacks.inversion.problem import InversionProblem
from attacks.published.gidm_plus import match_everything
from tests.attacks.conftest import Victim, make_victim


def weights_of(problem: InversionProblem) -> Tensor:
    return balanced_weights(problem.gradient, problem.std, power=1.5)


DISTANCES: dict[str, Callable[[InversionProblem], Distance]] = {
    "squared": lambda _: squared_error,
    "weighted": lambda problem: weighted_squared_error(weights_of(problem)),
    "cosine": lambda _: cosine_distance,
    "weighted cosine": lambda problem: weighted_cosine_distance(weights_of(problem)),
}
TOLERANCE = {"one-sided": 2e-2, "central": 1e-3, "double-backward": 1e-5}


def double_matching(victim: Victim, distance: str, derivative: str) -> GradientMatching:
    """Matching of (images, noise) in float64, the timesteps given."""
    problem = InversionProblem(victim.observation, "cpu")
    problem.model.double()
    problem.gradient = {name: value.double() for name, value in problem.gradient.items()}
    matching = match_everything(problem, derivative, victim.timesteps)
    matching.distance = DISTANCES[distance](problem)
    return matching


def draw_unknowns(victim: Victim) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = victim.images.shape
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("derivative", TOLERANCE)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_derivative_is_that_of_the_value(distance, derivative):
    victim = make_victim((120, 700))
    matching = double_matching(victim, distance, derivative)
    unknowns = draw_unknowns(victim)
    value, found = matching(unknowns)
    assert value == pytest.approx(matching.value(unknowns))
    generator = torch.Generator().manual_seed(6)
    for index, unknown in enumerate(unknowns):
        random = torch.randn(unknown.shape, generator=generator, dtype=torch.float64)
        direction = random / random.norm() + found[index] / found[index].norm()
        step = 1e-5
        moved = [
            matching.value([u + sign * step * direction if u is unknown else u for u in unknowns]) for sign in (1, -1)
        ]
        expected = (moved[0] - moved[1]) / (2 * step)
        assert float((found[index] * direction).sum()) == pytest.approx(expected, rel=TOLERANCE[derivative])


@pytest.mark.parametrize("derivative", TOLERANCE)
def test_weights_and_gradients_are_left_as_they_were(victim, derivative):
    problem = InversionProblem(victim.observation, "cpu")
    matching = match_everything(problem, derivative, victim.timesteps)
    unknowns = [value.clone().requires_grad_() for value in (victim.images * 0.5, victim.noise)]
    matching(unknowns)
    state = problem.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in victim.observation.weights.items())
    assert all(value.grad is None for value in [*unknowns, *problem.model.parameters()])
    assert problem.budget.spent == 1


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_distance_is_zero_at_the_truth_and_its_derivative_is_dd_dg(victim, distance):
    problem = InversionProblem(victim.observation, "cpu")
    measure = DISTANCES[distance](problem)
    observed = flatten(list(problem.gradient.values()))
    assert float(measure(observed, observed)[0]) == pytest.approx(0, abs=1e-6)
    gradient = (observed + 0.1 * observed.norm() / len(observed) ** 0.5 * torch.randn_like(observed)).requires_grad_()
    value, derivative = measure(gradient, observed)
    (expected,) = torch.autograd.grad(value, gradient)
    torch.testing.assert_close(derivative.detach(), expected)


def test_the_cosine_distance_keeps_its_digits_near_zero():
    observed = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    gradient = 3 * observed
    gradient[0] += 1e-3
    value, _ = cosine_distance(gradient, observed)
    expected, _ = cosine_distance(gradient.double(), observed.double())
    assert float(value) == pytest.approx(float(expected), rel=1e-2)
    assert float(expected) < 1e-9
