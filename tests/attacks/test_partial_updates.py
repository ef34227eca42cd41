"""Updates of a part of the model: what does not travel cannot be matched, and little else changes."""

from dataclasses import replace

import pytest
import torch

from attacks.inversion.problem import InversionProblem
from attacks.observation import Observation
from attacks.registry import create
from attacks.timesteps.recovery import recover_timesteps
from fl_sim import diffusion, network
from tests.attacks.conftest import MODEL, Victim, make_victim

ADAPTED = {**MODEL, "lora": {"rank": 4, "alpha": 8, "targets": ["*"]}}


def test_the_image_behind_adapters_is_found(tmp_path):
    victim = make_victim(model_config=ADAPTED, known=True)
    victim.observation.save(tmp_path / "capture.safetensors")
    seen = Observation.load(tmp_path / "capture.safetensors")
    assert all(".lora_" in name for name in seen.update)
    found = create("residual", {"precision": 1e-3}).reconstruct(seen, seed=100)
    assert victim.psnr(found.images) > 40


@pytest.mark.parametrize("timesteps", [(20,), (100, 600)])
def test_adapters_tell_timesteps(timesteps):
    victim = make_victim(timesteps, model_config=ADAPTED)
    assert recover_timesteps(InversionProblem(victim.observation, "cpu")).timesteps.tolist() == list(timesteps)


def after_a_round(victim: Victim) -> Observation:
    """The same images, noise and timesteps at adapters of which the second matrix is no longer zero."""
    circumstances, weights = victim.observation.circumstances, dict(victim.observation.weights)
    weights |= {name: 0.1 * torch.randn_like(value) for name, value in weights.items() if "lora_B" in name}
    model = network.build_model(ADAPTED)
    model.load_state_dict(weights)
    scheduler = diffusion.build_scheduler(circumstances.task.scheduler)
    return Observation(
        circumstances, weights, diffusion.gradient(model, scheduler, victim.images, victim.noise, victim.timesteps)
    )


def test_once_the_second_matrix_is_not_zero_the_first_tells_them_too():
    seen = after_a_round(make_victim(model_config=ADAPTED))
    update = {name: value for name, value in seen.update.items() if "lora_A" in name}
    problem = InversionProblem(replace(seen, update=update), "cpu")
    assert recover_timesteps(problem).timesteps.tolist() == [400]


def test_the_image_behind_adapters_that_were_trained_before_is_found():
    victim = make_victim((300,), model_config=ADAPTED)
    found = create("residual", {"precision": 1e-3}).reconstruct(after_a_round(victim), seed=100)
    assert found.timesteps.tolist() == [300]
    assert victim.psnr(found.images) > 40


def test_the_image_behind_some_of_the_parameters_is_found():
    def some(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in update.items() if "conv" in name or "time_emb" in name}

    victim = make_victim(defend=some)
    assert 0 < len(victim.observation.update) < len(victim.observation.weights)
    found = create("residual", {"precision": 1e-3}).reconstruct(victim.observation, seed=100)
    assert victim.psnr(found.images) > 40
