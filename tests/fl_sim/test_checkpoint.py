from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fl_sim.checkpoint import Checkpoint, read_checkpoint
from fl_sim.diffusion import DiffusionTask, scheduler_config
from fl_sim.network import ConfigError, build_model, unet_config

MODEL = unet_config(16, block_out_channels=(8, 8), norm_num_groups=4)
TASK = DiffusionTask.on(scheduler_config())


def checkpoint() -> Checkpoint:
    return Checkpoint(build_model(MODEL).state_dict(), MODEL, TASK, {"photographs": ["china"]})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = checkpoint()
    saved.save(tmp_path / "model.safetensors")
    loaded = read_checkpoint(tmp_path / "model.safetensors")
    assert (loaded.model, loaded.task, loaded.notes) == (saved.model, saved.task, saved.notes)
    assert loaded.image_shape == (3, 16, 16)
    assert all(torch.equal(loaded.weights[name], value) for name, value in saved.weights.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_trained_in_float32_and_it_is_told(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {name: value.to(dtype) for name, value in checkpoint().weights.items()}
    Checkpoint(stored, MODEL, TASK, {}).save(tmp_path / "model.safetensors")
    loaded = read_checkpoint(tmp_path / "model.safetensors")
    assert f"torch.{loaded.dtype}" == str(dtype)
    assert all(torch.equal(loaded.weights[name], value.float()) for name, value in stored.items())
    assert {value.dtype for value in loaded.weights.values()} == {torch.float32}


def test_a_configuration_that_leaves_the_schedule_to_diffusers_runs(tmp_path: Path) -> None:
    Checkpoint(checkpoint().weights, MODEL, DiffusionTask.on({}), {}).save(tmp_path / "model.safetensors")
    loaded = read_checkpoint(tmp_path / "model.safetensors")
    assert loaded.task.scheduler == {"num_train_timesteps": 1000, "prediction_type": "epsilon"}


def of_nan(path: Path) -> None:
    spoilt = {name: value * torch.nan for name, value in checkpoint().weights.items()}
    Checkpoint(spoilt, MODEL, TASK, {}).save(path)


def with_a_prefix(path: Path) -> None:
    weights = {f"unet.{name}": value for name, value in checkpoint().weights.items()}
    Checkpoint(weights, MODEL, TASK, {}).save(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [(of_nan, "holds NaN"), (with_a_prefix, r"unet\.conv_in\.bias is no parameter .* without 'unet\.' in front")],
)
def test_weights_that_do_not_serve_are_one_line(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    make(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=reason) as refusal:
        read_checkpoint(tmp_path / "model.safetensors")
    assert "\n" not in str(refusal.value)


def test_a_network_with_the_weights_of_a_checkpoint() -> None:
    saved = checkpoint()
    built = saved.build().state_dict()
    assert built.keys() == saved.weights.keys()
    assert all(torch.equal(built[name], value) for name, value in saved.weights.items())


def test_a_checkpoint_for_other_images_is_refused() -> None:
    checkpoint().check((3, 16, 16))
    with pytest.raises(ConfigError, match="16x16 pixels, not of 8x16"):
        checkpoint().check((3, 8, 16))
    with pytest.raises(ConfigError, match="the images have 1"):
        checkpoint().check((1, 16, 16))
