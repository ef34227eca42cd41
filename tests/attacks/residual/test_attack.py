import math

import pytest
import torch

from attacks.attack import AttackError
from attacks.observation import DefenceDisclosure
from attacks.registry import create
from attacks.residual import Residual
from fl_sim import diffusion
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import Victim, assert_sum_like_batch, make_victim
from tests.attacks.residual.candidates import WIDE


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_it_finds_image_and_timestep(prediction_type):
    victim = make_victim((200,), prediction_type=prediction_type)
    result = create("residual", {"max_evaluations": 600}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 50
    assert result.timesteps.tolist() == [200]
    assert result.matching_loss < 1e-6
    assert result.evaluations < 600


def test_it_finds_every_image_of_a_batch():
    victim = make_victim((600, 80), model_config=WIDE)
    result = create("residual", {"max_evaluations": 250}).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [80, 600]
    assert matched_psnr(victim, result.images) > 40


def test_the_images_of_a_sum_of_clients_are_found_like_those_of_their_batch():
    seen = make_victim((600, 80), model_config=WIDE).observation
    assert_sum_like_batch(create("residual", {"max_evaluations": 20}), seen, [80, 600])


def test_it_finds_the_image_under_a_fourier_embedding():
    victim = make_victim((200,), model_config=WIDE | {"time_embedding_type": "fourier"})
    result = create("residual", {"max_evaluations": 600}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 50
    assert result.timesteps.tolist() == [200]


def test_dictated_local_steps_are_simulated_in_their_order():
    optimizer = LocalOptimizer(lr=0.1, momentum=0.5)
    victim = make_victim((400, 150), local_steps=2, optimizer=optimizer, model_config=WIDE, known=True)
    result = create("residual", {"max_evaluations": 200}).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [400, 150]
    assert victim.psnr(result.images) > 40


def test_it_uses_what_the_server_dictated():
    victim = make_victim((700, 150), known=True)
    result = create("residual", {"max_evaluations": 300}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 50
    assert result.timesteps.tolist() == [700, 150]


def test_a_single_sgd_step_is_inverted_like_a_gradient():
    victim = make_victim((350,), optimizer=LocalOptimizer(lr=0.5, momentum=0.9))
    result = create("residual", {"max_evaluations": 600}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 40


def root_mean_square(update: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in update.values()]).square().mean().sqrt())


def noisy(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator, size = torch.Generator().manual_seed(7), 0.1 * root_mean_square(update)
    return {name: value + size * torch.randn(value.shape, generator=generator) for name, value in update.items()}


def signs_of(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.sign() for name, value in update.items()}


def clipped(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    norm = torch.cat([value.flatten() for value in update.values()]).norm()
    return {name: value / norm for name, value in update.items()}


def largest(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    threshold = torch.cat([value.flatten() for value in update.values()]).abs().quantile(0.8)
    return {name: value * (value.abs() >= threshold) for name, value in update.items()}


DEFENDED = {
    "noise": (noisy, DefenceDisclosure(noise_std=0.1 * root_mean_square(make_victim((200,)).observation.update)), 25),
    "signs": (signs_of, DefenceDisclosure(signs=True), 25),
    "clip": (clipped, DefenceDisclosure(clip_norm=1.0), 25),
    "top-k": (largest, DefenceDisclosure(sparsified=True), 45),
}


@pytest.mark.parametrize(("defend", "defence", "threshold"), DEFENDED.values(), ids=DEFENDED)
def test_it_matches_through_a_defence_that_the_server_knows(defend, defence, threshold):
    victim = make_victim((200,), defend=defend, defence=defence)
    result = create("residual", {"max_evaluations": 200}).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [200]
    assert victim.psnr(result.images) > threshold


@pytest.mark.parametrize("decay", [{"name": "adam"}, {"name": "adamw", "weight_decay": 0.1}], ids=["adam", "adamw"])
def test_adams_first_step_gives_the_image_away(decay):
    victim = make_victim((350,), optimizer=LocalOptimizer(lr=1e-2, **decay))
    result = create("residual", {"max_evaluations": 600}).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [350]
    assert victim.psnr(result.images) > 24


def matched_psnr(victim: Victim, images: torch.Tensor) -> float:
    """Of the right one of both orders that two images may come in."""
    return max(victim.psnr(images), victim.psnr(images.flip(0)))


def test_two_local_steps_are_told_apart_and_simulated():
    optimizer = LocalOptimizer(lr=0.1, momentum=0.5)
    victim = make_victim((400, 150), local_steps=2, optimizer=optimizer, model_config=WIDE)
    result = create("residual", {"max_evaluations": 250}).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [150, 400]
    assert matched_psnr(victim, result.images) > 35


def test_a_hundred_orders_of_steps_keep_to_the_budget():
    victim = make_victim((400, 150, 30, 250, 700), local_steps=5, optimizer=LocalOptimizer(lr=0.01), model_config=WIDE)
    result = create("residual", {"max_evaluations": 10}).reconstruct(victim.observation, seed=101)
    assert sorted(result.timesteps.tolist()) == [30, 150, 250, 400, 700]
    assert result.evaluations < 10 * math.sqrt(5) + 30  # a line search is ended


def test_of_timesteps_drawn_twice_the_matching_loss_chooses():
    victim = make_victim((300, 300, 700), model_config=WIDE)
    result = Residual(max_evaluations=100).reconstruct(victim.observation, seed=100)
    assert result.timesteps.tolist() == [300, 300, 700]


def without_time_layers(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in update.items() if "time_" not in name}


def test_a_timestep_that_cannot_be_read_off_is_matched():
    victim = make_victim((700,), defend=without_time_layers, model_config=WIDE)
    result = Residual(max_evaluations=600).reconstruct(victim.observation, seed=100)
    assert result.timesteps.tolist() == [700]
    assert victim.psnr(result.images) > 40


def test_a_matched_timestep_that_explains_nothing_is_not_claimed():
    noise = torch.Generator().manual_seed(0)

    def replaced(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: torch.randn(value.shape, generator=noise) for name, value in update.items()}

    attack = create("residual", {"max_evaluations": 20, "timestep_tournament": {"first_timesteps": 8}})
    result = attack.reconstruct(make_victim((300,), defend=replaced).observation, seed=100)
    assert result.timesteps.tolist() == [-1]


@pytest.mark.parametrize(("timesteps", "arguments"), [((300, 500), {}), ((300,), {"search_timestep": False})])
def test_timesteps_that_cannot_be_told_are_one_line(timesteps, arguments):
    victim = make_victim(timesteps, defend=without_time_layers, model_config=WIDE)
    with pytest.raises(AttackError, match=r"^timesteps cannot be read off this update \(margin 0.0\)$"):
        Residual(**arguments).reconstruct(victim.observation, seed=100)
