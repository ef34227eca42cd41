from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from experiments.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fl_sim.config import SettingsError
from fl_sim.diffusion import build_model, scheduler_config, unet_config

MODEL = unet_config(16, block_out_channels=(8, 8), norm_num_groups=4)


def checkpoint() -> Checkpoint:
    return Checkpoint(build_model(MODEL).state_dict(), MODEL, scheduler_config(), {"photographs": ["china"]})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = checkpoint()
    save_checkpoint(tmp_path / "model.safetensors", saved)
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert (loaded.model, loaded.scheduler, loaded.notes) == (saved.model, saved.scheduler, saved.notes)
    assert loaded.image_size == 16
    assert all(torch.equal(loaded.weights[name], value) for name, value in saved.weights.items())


def truncated(path: Path) -> None:
    save_checkpoint(path, checkpoint())
    path.write_bytes(path.read_bytes()[:5000])


def without_metadata(path: Path) -> None:
    save_file(checkpoint().weights, path)


def without_scheduler(path: Path) -> None:
    save_file(checkpoint().weights, path, metadata={"checkpoint": '{"model": {}}'})


def of_another_model(path: Path) -> None:
    other = unet_config(16, block_out_channels=(8, 16), norm_num_groups=4)
    save_checkpoint(path, Checkpoint(checkpoint().weights, other, scheduler_config(), {}))


def of_a_strange_class(path: Path) -> None:
    save_checkpoint(path, Checkpoint(checkpoint().weights, {"_class_name": "os.system"}, scheduler_config(), {}))


def no_tensors_at_all(path: Path) -> None:
    path.write_text("hello")


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        without_metadata,
        without_scheduler,
        of_another_model,
        of_a_strange_class,
        no_tensors_at_all,
        Path.mkdir,
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(tmp_path / "model.safetensors")
    with pytest.raises(SettingsError, match="not a usable checkpoint") as refusal:
        load_checkpoint(tmp_path / "model.safetensors")
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"model\.checkpoint = .*not a usable checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
