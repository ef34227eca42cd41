import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from attacks.attack import AttackError, Reconstruction
from attacks.reconstruction_file import load_reconstruction, save_reconstruction
from tests.attacks.toy_attacks import tiny_observation

RECONSTRUCTION = Reconstruction(
    images=torch.rand(2, 3, 8, 8),
    timesteps=torch.tensor([7, -1]),
    matching_loss=1e-9,
    evaluations=3,
    seconds=0.25,
    device="cpu",
    attack="guess",
    settings={"budget": 5},
    seed=2**62 + 1,
    peak_memory=512.5,
)


def test_what_is_saved_is_loaded(tmp_path):
    save_reconstruction(tmp_path / "r.safetensors", RECONSTRUCTION)
    loaded = load_reconstruction(tmp_path / "r.safetensors")
    assert torch.equal(loaded.images, RECONSTRUCTION.images)
    assert torch.equal(loaded.timesteps, RECONSTRUCTION.timesteps)
    names = ("matching_loss", "evaluations", "seconds", "device", "attack", "settings", "seed", "peak_memory")
    assert all(getattr(loaded, name) == getattr(RECONSTRUCTION, name) for name in names)


def test_a_file_of_an_earlier_version_tells_no_peak_memory(tmp_path):
    save_reconstruction(tmp_path / "new.safetensors", RECONSTRUCTION)
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["attack"])
        tensors = {name: file.get_tensor(name) for name in ("images", "timesteps")}
    del facts["peak_memory"]
    save_file(tensors, tmp_path / "old.safetensors", metadata={"attack": json.dumps(facts)})
    assert load_reconstruction(tmp_path / "old.safetensors").peak_memory is None


def test_labels_are_there_if_the_network_takes_them(tmp_path):
    save_reconstruction(tmp_path / "without.safetensors", RECONSTRUCTION)
    assert load_reconstruction(tmp_path / "without.safetensors").labels is None
    save_reconstruction(tmp_path / "with.safetensors", replace(RECONSTRUCTION, labels=torch.tensor([4, -1])))
    assert load_reconstruction(tmp_path / "with.safetensors").labels.tolist() == [4, -1]


@pytest.mark.parametrize("kept_bytes", [0, 20, 500])
def test_a_truncated_file_is_one_line(tmp_path, kept_bytes):
    path = tmp_path / "r.safetensors"
    save_reconstruction(path, RECONSTRUCTION)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(AttackError, match="not a readable reconstruction") as caught:
        load_reconstruction(path)
    assert "\n" not in str(caught.value)


def test_a_capture_is_no_reconstruction(tmp_path):
    tiny_observation().save(tmp_path / "capture.safetensors")
    with pytest.raises(AttackError, match=r"capture\.safetensors: not a readable reconstruction"):
        load_reconstruction(tmp_path / "capture.safetensors")


def test_one_image_that_stands_for_all_says_so(tmp_path):
    for representative in (False, True):
        one = replace(RECONSTRUCTION, representative=representative)
        save_reconstruction(tmp_path / "r.safetensors", one)
        assert load_reconstruction(tmp_path / "r.safetensors").representative is representative
