import math

import pytest
import torch

from attacks.inversion.entry_weights import balanced_weights, matching_distance, noise_floor
from attacks.inversion.gradient_matching import flatten, squared_error, weighted_squared_error
from attacks.inversion.problem import InversionProblem
from attacks.observation import DefenceDisclosure
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import make_victim


def exact(gradient: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(value) for name, value in gradient.items()}


def test_balancing_weighs_a_tensor_by_its_rms_and_ignores_one_without_gradient():
    observed = {"large": torch.full((4,), 10.0), "small": torch.full((4,), 0.1), "none": torch.zeros(2)}
    flat = flatten(list(observed.values()))
    distance = weighted_squared_error(balanced_weights(observed, exact(observed), power=2))
    for name in ("large", "small"):
        changed = flatten([value * (0.5 if key == name else 1) for key, value in observed.items()])
        assert float(distance(changed, flat)[0]) == pytest.approx(0.25 / 2)
    assert float(distance(flat + torch.tensor([0.0] * 8 + [5.0, 5.0]), flat)[0]) == 0


def test_power_zero_is_the_plain_squared_error():
    observed = {"large": torch.full((4,), 10.0), "small": torch.full((4,), 0.1)}
    flat = flatten(list(observed.values()))
    plain = weighted_squared_error(balanced_weights(observed, exact(observed), power=0))
    torch.testing.assert_close(plain(flat * 0.5, flat)[0], squared_error(flat * 0.5, flat)[0])


def test_where_noise_dominates_entries_weigh_by_their_variance():
    observed = {"a": torch.full((4,), 1.0), "b": torch.full((4,), 0.01)}
    deviations = {"a": torch.full((4,), 20.0), "b": torch.full((4,), 10.0)}
    weights = balanced_weights(observed, deviations, power=1.5)
    assert float(weights[4] / weights[0]) == pytest.approx(4, rel=1e-2)


def test_entries_that_were_not_revealed_weigh_nothing():
    observed = {"a": torch.tensor([1.0, 0.0, 2.0])}
    weights = balanced_weights(observed, {"a": torch.tensor([0.0, math.inf, 0.0])}, power=1.5)
    assert weights[1] == 0
    assert weights[0] == weights[2] > 0


def test_the_truth_has_about_the_matching_loss_that_noise_makes_expected():
    truth = make_victim((200,))
    flat = flatten(list(truth.observation.update.values()))
    size = 0.3 * float(flat.square().mean().sqrt())
    generator = torch.Generator().manual_seed(1)

    def noisy(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value + size * torch.randn(value.shape, generator=generator) for name, value in update.items()}

    problem = InversionProblem(
        make_victim((200,), defend=noisy, defence=DefenceDisclosure(noise_std=size)).observation, "cpu"
    )
    loss, _ = matching_distance(problem, 1.5)(flat, flatten(list(problem.gradient.values())))
    assert float(loss) == pytest.approx(noise_floor(problem, 1.5), rel=0.1)


def test_a_clipped_gradient_is_matched_whatever_its_scale():
    problem = InversionProblem(make_victim((200,), defence=DefenceDisclosure(clip_norm=1e-6)).observation, "cpu")
    flat = flatten(list(problem.gradient.values()))
    problem.circumstances = problem.circumstances.model_copy(
        update={"defence": DefenceDisclosure(clip_norm=float(flat.norm()))}
    )
    assert not problem.scale_known
    assert float(matching_distance(problem, 1.5)(7 * flat, flat)[0]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("timesteps", "max_grad_norm", "known"), [((200,), 1e-2, False), ((200,), 1e6, True), ((200, 300), 1e6, False)]
)
def test_a_client_that_clips_its_gradients_leaves_their_scale_open(timesteps, max_grad_norm, known):
    optimizer = LocalOptimizer(lr=0.1, max_grad_norm=max_grad_norm)
    trained = make_victim(timesteps, local_steps=len(timesteps), optimizer=optimizer)
    assert InversionProblem(trained.observation, "cpu").scale_known == known


def test_a_gradient_below_the_clipping_norm_has_its_scale():
    problem = InversionProblem(make_victim((200,), defence=DefenceDisclosure(clip_norm=1e6)).observation, "cpu")
    flat = flatten(list(problem.gradient.values()))
    assert problem.scale_known
    assert float(matching_distance(problem, 1.5)(2 * flat, flat)[0]) == pytest.approx(1, rel=1e-5)


def test_tensors_whose_gradient_is_rounding_do_not_outweigh_the_others():
    generator = torch.Generator().manual_seed(0)
    gradient = {
        "kernel": torch.randn(1000, generator=generator),
        "keys.bias": 1e-10 * torch.randn(10, generator=generator),
    }
    uncertainty = {"kernel": torch.full((1000,), 0.1), "keys.bias": torch.full((10,), 1e-11)}
    weights = balanced_weights(gradient, uncertainty, 1.5)
    assert float((weights[1000:] * gradient["keys.bias"].square()).sum()) < 1e-4
