"""``fl-sim attack``."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from attacks.reconstruction_file import load_reconstruction
from fl_sim.draws import derive_seed
from tests.attacks.conftest import make_victim
from tests.attacks.toy_attacks import Guess, tiny_observation
from tests.experiments.in_process import run_in_process
from tests.experiments.made_up_run import tiny_settings
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
    assert re.search(r"on cpu, peak memory \d+ MiB;", " ".join(result.output.split()))
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


SEARCH = ("--attack", "inverting-gradients", "--set", "iterations=120")


@pytest.fixture
def known_capture(tmp_path: Path) -> Path:
    path = tmp_path / "known.safetensors"
    make_victim(known=True).observation.save(path)
    return path


def stopped_search(number: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """``fl-sim attack`` in a process of its own, which gets a signal once its checkpoint is there."""
    words = [str(argument) for argument in arguments]
    checkpoint = Path(words[words.index("--checkpoint") + 1])
    command = [sys.executable, "-c", "from experiments.cli import main; main()", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_a_search_that_is_stopped_says_how_to_go_on_and_goes_on_to_the_same_result(
    tmp_path: Path, known_capture: Path
) -> None:
    checkpoint = tmp_path / "search.log"
    common = ("attack", known_capture, *SEARCH, "--checkpoint", checkpoint)
    stopped = stopped_search(signal.SIGTERM, *common, "--checkpoint-every", "0", "--out", tmp_path / "stopped")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    first, _, command = stopped.stderr.strip().partition("; to go on: ")
    assert first == "fl-sim: stopped"
    assert not (tmp_path / "stopped").exists()
    resumed = fl_sim(*shlex.split(command)[1:])
    assert resumed.exit_code == 0, resumed.output
    assert fl_sim("attack", known_capture, *SEARCH, "--out", tmp_path / "plain").exit_code == 0
    one, other = (
        load_reconstruction(tmp_path / folder / "reconstruction.safetensors") for folder in ("stopped", "plain")
    )
    assert torch.equal(one.images, other.images)
    assert (one.matching_loss, one.evaluations, one.settings) == (
        other.matching_loss,
        other.evaluations,
        other.settings,
    )
    pictures = [(tmp_path / folder / "reconstruction.png").read_bytes() for folder in ("stopped", "plain")]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("--seed", "3"), "is of another search: seed = "),
        (("--set", "lr=0.2"), "is of another search: settings = "),
        (("--threads", "2"), "is of another search: threads = 1, here 2"),
    ],
)
def test_the_checkpoint_of_another_search_is_one_line(
    tmp_path: Path, known_capture: Path, change: tuple[str, ...], complaint: str
) -> None:
    search = ("attack", known_capture, "--attack", "inverting-gradients", "--set", "iterations=8")
    kept = ("--checkpoint", tmp_path / "search.log")
    assert fl_sim(*search, *kept, "--out", tmp_path / "first").exit_code == 0
    assert_refused(fl_sim(*search, *kept, *change, "--resume", "--out", tmp_path / "second"), complaint)
    assert_refused(fl_sim(*search, *kept, "--out", tmp_path / "second"), "is there already")
    assert not (tmp_path / "second").exists()


def test_the_checkpoint_of_another_capture_is_one_line(tmp_path: Path, known_capture: Path, capture: Path) -> None:
    search = ("--attack", "residual", "--set", "max_evaluations=2", "--checkpoint", tmp_path / "search.log")
    assert fl_sim("attack", known_capture, *search, "--out", tmp_path / "first").exit_code == 0
    result = fl_sim("attack", capture, *search, "--resume", "--out", tmp_path / "second")
    assert_refused(result, "is of another search: capture = ")


def test_resuming_needs_a_file(tmp_path: Path, capture: Path) -> None:
    assert_refused(fl_sim("attack", capture, "--attack", GUESS, "--resume"), "--resume", "with --checkpoint FILE")
    gone = ("--checkpoint", tmp_path / "gone.log", "--resume")
    assert_refused(fl_sim("attack", capture, "--attack", GUESS, *gone), "gone.log")


def test_an_attack_that_does_not_fit_is_one_line_and_leaves_nothing(
    tmp_path: Path, capture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attacks.attack.available_memory", lambda _: 1.0)
    kept = ("--checkpoint", tmp_path / "search.log", "--out", tmp_path / "out")
    assert_refused(fl_sim("attack", capture, "--attack", GUESS, *kept), "needs about", "1 MiB are left")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "search.log").exists()


def test_in_a_run_the_status_says_that_an_attack_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attacks.attack.available_memory", lambda _: 1.0)
    run = run_in_process(tmp_path / "run", tiny_settings(f"attack.name={GUESS}"))
    table = pd.read_csv(run.leakage_csv)
    assert len(table) == 4
    assert table["status"].str.contains("needs about .* MiB of memory on cpu, 1 MiB are left").all()


def test_a_run_says_what_its_attacks_took_of_memory(tmp_path: Path) -> None:
    run = run_in_process(tmp_path / "run", tiny_settings(f"attack.name={GUESS}", "federation.rounds=1"))
    assert (pd.read_csv(run.leakage_csv)["peak_memory"] > 100).all()
