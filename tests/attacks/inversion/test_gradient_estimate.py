import dataclasses
import math

import pytest
import torch

from attacks.inversion.gradient_estimate import estimate_gradient, invert_adam_step, step_weights
from attacks.observation import DefenceDisclosure
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import make_victim

NAME = "mid_block.resnets.0.conv1.weight"


def test_a_gradient_is_exact():
    observation = make_victim().observation
    gradient, uncertainty = estimate_gradient(observation, NAME)
    assert torch.equal(gradient, observation.update[NAME])
    assert not uncertainty.any()


@pytest.mark.parametrize(
    "optimizer",
    [
        LocalOptimizer(lr=1e-3, momentum=0.9),
        LocalOptimizer(lr=1e-3, weight_decay=0.1),
        LocalOptimizer(name="adam", lr=1e-3),
        LocalOptimizer(name="adam", lr=1e-3, weight_decay=1e-4),
        LocalOptimizer(name="adamw", lr=1e-3, weight_decay=0.1),
    ],
    ids=lambda optimizer: f"{optimizer.name}-{optimizer.momentum}-{optimizer.weight_decay}",
)
def test_one_step_gives_the_gradient_back_with_errors_of_the_size_it_says(optimizer):
    truth = make_victim().observation.update
    observation = make_victim(optimizer=optimizer).observation
    for name in (NAME, "time_embedding.linear_1.weight"):
        gradient, uncertainty = estimate_gradient(observation, name)
        seen = uncertainty.isfinite() & (uncertainty < 0.1 * gradient.abs())
        errors = ((gradient - truth[name]) / uncertainty)[seen]
        assert seen.float().mean() > 0.05
        assert 0.5 < float(errors.square().mean().sqrt()) < 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("optimizer", [None, LocalOptimizer(lr=0.5)], ids=["gradient", "delta"])
def test_rounding_to_16_bits_shows_as_uncertainty_of_its_size(dtype, optimizer):
    truth = make_victim().observation.update[NAME]
    observation = make_victim(optimizer=optimizer, dtype=dtype).observation
    gradient, uncertainty = estimate_gradient(observation, NAME)
    errors = (gradient - truth) / uncertainty
    assert 0.9 < float(errors.square().mean().sqrt()) < 1.1
    assert float(errors.abs().max()) < 1.01 * math.sqrt(3)  # half a spacing, in standard deviations
    largest = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    if optimizer is None:
        normal = gradient.abs() > 2**-14
        assert float(((gradient - truth) / truth)[normal].abs().max()) <= 1.001 * largest


def test_what_float16_rounds_to_nothing_is_as_uncertain_as_its_smallest_number():
    observation = make_victim(
        defend=lambda update: {name: 0 * value for name, value in update.items()} | {"conv_in.bias": torch.ones(16)},
        dtype="float16",
    ).observation
    _, uncertainty = estimate_gradient(observation, NAME)
    torch.testing.assert_close(uncertainty, torch.full_like(uncertainty, 2**-24 / math.sqrt(12)))


def test_adam_reveals_nothing_where_its_step_is_a_whole_one():
    gradient, uncertainty = invert_adam_step(torch.tensor([1.0, -1.0, 0.5]).double(), torch.zeros(3).double(), 1e-8)
    assert uncertainty.isinf().tolist() == [True, True, False]
    assert float(gradient[2]) == pytest.approx(1e-8)


def weights_of_three_steps(momentum: float, ema_decay: float | None = None) -> list[float]:
    optimizer = LocalOptimizer(lr=1e-3, momentum=momentum)
    circumstances = make_victim((400,) * 3, local_steps=3, optimizer=optimizer).observation.circumstances
    return step_weights(circumstances.model_copy(update={"ema_decay": ema_decay}))


def test_momentum_and_averages_weigh_early_steps_more():
    assert weights_of_three_steps(0.0) == [1, 1, 1]
    assert weights_of_three_steps(0.5) == [1.75, 1.5, 1]
    # d = 0, 2/11 and min(0.2, 3/12)
    shares = [2 / 11 * 0.2, 9 / 11 * 0.2, 0.8]
    assert weights_of_three_steps(0.0, 0.2) == pytest.approx([1, shares[1] + shares[2], shares[2]])
    momentum = [shares[0] + 1.5 * shares[1] + 1.75 * shares[2], shares[1] + 1.5 * shares[2], shares[2]]
    assert weights_of_three_steps(0.5, 0.2) == pytest.approx(momentum)


def test_noise_and_missing_entries_show_as_uncertainty():
    def largest(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value * (value.abs() > value.abs().median()) for name, value in update.items()}

    observation = make_victim(defend=largest, defence=DefenceDisclosure(noise_std=0.25, sparsified=True)).observation
    gradient, uncertainty = estimate_gradient(observation, NAME)
    assert ((uncertainty == math.inf) == (gradient == 0)).all()
    assert (uncertainty[gradient != 0] == 0.25).all()


def test_signs_of_a_delta_are_turned_round():
    def signs_of(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value.sign() for name, value in update.items()}

    defence = DefenceDisclosure(signs=True)
    of_gradient = make_victim(defend=signs_of, defence=defence).observation
    of_delta = make_victim(defend=signs_of, defence=defence, optimizer=LocalOptimizer(lr=0.5)).observation
    gradient, _ = estimate_gradient(of_gradient, NAME)
    from_delta, uncertainty = estimate_gradient(of_delta, NAME)
    assert (gradient == from_delta).float().mean() > 0.99
    assert not uncertainty.any()


def test_signs_come_without_the_magnitude_that_was_sent_with_them():
    observation = make_victim(
        defend=lambda update: {name: 0.03 * value.sign() for name, value in update.items()},
        defence=DefenceDisclosure(signs=True),
    ).observation
    gradient, _ = estimate_gradient(observation, NAME)
    assert torch.equal(gradient, observation.update[NAME].sign())


@pytest.mark.parametrize("levels", [1, 7, 127])
@pytest.mark.parametrize("optimizer", [None, LocalOptimizer(lr=0.5)], ids=["gradient", "delta"])
def test_random_rounding_shows_as_uncertainty_of_its_size(levels, optimizer):
    generator = torch.Generator().manual_seed(0)

    def rounded(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        steps = {name: value.abs().max() / levels for name, value in update.items()}
        return {
            name: (value / steps[name] + torch.rand(value.shape, generator=generator)).floor() * steps[name]
            for name, value in update.items()
        }

    truth = make_victim().observation.update[NAME]
    defence = DefenceDisclosure(quantisation_levels=levels)
    observation = make_victim(defend=rounded, defence=defence, optimizer=optimizer).observation
    gradient, uncertainty = estimate_gradient(observation, NAME)
    assert 0.6 < float(((gradient - truth) / uncertainty).square().mean().sqrt()) < 1.1


def test_noise_in_training_shows_as_uncertainty_of_the_mean_gradient():
    def uncertainty(clients: int = 1, **optimizer: float) -> torch.Tensor:
        local = LocalOptimizer(lr=1.0, **optimizer) if optimizer else None
        steps = 3 if optimizer else 1
        defence = DefenceDisclosure(gradient_noise_std=0.25)
        observation = make_victim((400,) * steps, local_steps=steps, optimizer=local, defence=defence).observation
        changes = {"num_clients": clients, "client": -1 if clients > 1 else 0}
        circumstances = observation.circumstances.model_copy(update=changes)
        return estimate_gradient(dataclasses.replace(observation, circumstances=circumstances), NAME)[1]

    assert (uncertainty() == 0.25).all()
    torch.testing.assert_close(uncertainty(4), torch.full_like(uncertainty(), 0.125))
    expected = 0.25 * math.sqrt(1.75**2 + 1.5**2 + 1) / (1.75 + 1.5 + 1)
    torch.testing.assert_close(uncertainty(momentum=0.5), torch.full_like(uncertainty(), expected))
