"""``fl-sim attack``."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attacks.reconstruction_file import load_reconstruction
from fl_sim.draws import derive_seed
from tests.attacks.toy_attacks import Guess, tiny_observation
from tests.experiments.test_cli import GUESS, assert_refused, fl_sim


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "update.safetensors"
    tiny_observation(server_round=2, client=1).save(path)
    return path


def test_an_attack_on_a_capture_gives_what_the_run_would(tmp_path: Path, capture: Path) -> None:
    result = fl_sim("attack", capture, "--attack", GUESS, "--seed", "7", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "timesteps: unknown" in result.output
    found = load_reconstruction(tmp_path / "out" / "reconstruction.safetensors")
    expected = Guess().reconstruct(tiny_observation(2, 1), derive_seed(7, "attack", "guess", 2, 1))
    assert torch.equal(found.images, expected.images)
    assert (tmp_path / "out" / "reconstruction.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("key", ["times", "attack.args.tests.attacks.toy_attacks:Die.times"])
def test_an_attacks_arguments_are_spelt_either_way(tmp_path: Path, capture: Path, key: str) -> None:
    die = "tests.attacks.toy_attacks:Die"
    arguments = ("--set", f"{key}=0", "--set", f"graves={tmp_path}")
    result = fl_sim("attack", capture, "--attack", die, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    wrong = (*arguments, "--set", "times=often")
    assert_refused(fl_sim("attack", capture, "--attack", die, *wrong), "times = 'often'")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def no_capture(path: Path) -> None:
    path.write_text("hello")


@pytest.mark.parametrize("spoil", [truncated, no_capture, Path.unlink])
def test_a_capture_that_cannot_be_read_is_one_line(
    tmp_path: Path, capture: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(capture)
    result = fl_sim("attack", capture, "--attack", GUESS, "--out", tmp_path / "out")
    assert_refused(result, "update.safetensors", "not a readable capture")
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_one_line(capture: Path) -> None:
    assert_refused(
        fl_sim("attack", capture, "--attack", GUESS, "--device", "tpu"), "--device tpu", "allowed: auto, cpu"
    )
