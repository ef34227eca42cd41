import json
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.attack import Attack, Reconstruction
from attacks.observation import Observation
from attacks.trace import Snapshot, Trace
from experiments.bench import provenance
from experiments.bench.attack_measurement import AttackMeasurement, psnr
from experiments.bench.bench import BENCHMARK
from experiments.bench.cases import CONTENDERS, NETWORKS, Case
from experiments.bench.suites import EVERYTHING, ON_REQUEST
from experiments.bench.victims import make_victim
from experiments.checkpoint import BUNDLED
from tests.experiments.bench.watching import watch
from tests.experiments.test_cli import assert_refused, fl_sim

TOYS = "tests.attacks.toy_attacks"
QUICK = ("bench", "attacks", "--quick", "--only", "signs", "--seed", "3", "--victims", "2")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[AttackMeasurement]:
    """What is measured from now on."""
    return watch(monkeypatch, AttackMeasurement)


def test_a_benchmark_from_the_command_line(tmp_path: Path) -> None:
    result = fl_sim(*QUICK, "--attacks", f"{TOYS}:Guess,{TOYS}:Fail", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / "attacks.json").read_text())
    guess, fail = content["figures"]
    assert (guess["cell"]["attack"], guess["cell"]["suite"], guess["victims"]) == ("guess", "signs", 2)
    assert 0 < guess["median_psnr"] < 20
    assert guess["timesteps"] == {"exact": 0, "unknown": 2, "wrong": 0}
    assert guess["failures"] == {}
    assert fail["failures"] == {"RuntimeError: no luck today": 2}
    assert (fail["median_psnr"], fail["seconds_to_40_db"]) == (0, None)
    assert content["about"]["options"]["seed"] == 3
    assert content["about"]["packages"]["torch"]
    assert content["about"]["device"]
    assert BENCHMARK.figures(content["rows"]) == content["figures"]
    page = (tmp_path / "out" / "attacks.md").read_text()
    assert "| guess | 2 |" in page
    assert "fail: 2 of 2 failed: RuntimeError: no luck today" in page
    assert str(tmp_path) not in page + json.dumps(content)


def test_what_was_measured_is_not_measured_again(tmp_path: Path, measured: list[AttackMeasurement]) -> None:
    command = (*QUICK, "--attacks", f"{TOYS}:Guess", "--out", tmp_path)
    assert fl_sim(*command).exit_code == 0
    assert len(measured) == 2
    rows = tmp_path / "rows.jsonl"
    before = rows.read_text()
    assert fl_sim(*command).exit_code == 0
    assert len(measured) == 2
    assert rows.read_text() == before
    rows.write_text(before[:-20])  # killed in the middle of a line
    assert fl_sim(*command).exit_code == 0
    assert [one.index for one in measured] == [0, 1, 1]
    assert fl_sim(*command, "--seed", "4", "--victims", "1").exit_code == 0
    assert [one.seed for one in measured] == [3, 3, 3, 4]
    assert len(json.loads((tmp_path / "attacks.json").read_text())["rows"]) == 1


def test_a_row_of_another_revision_does_not_count(
    tmp_path: Path, measured: list[AttackMeasurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*QUICK, "--attacks", f"{TOYS}:Guess", "--out", tmp_path)
    assert fl_sim(*command).exit_code == 0
    first = json.loads((tmp_path / "attacks.json").read_text())["rows"][0]["revision"]
    assert first == provenance.revision()
    monkeypatch.setattr(provenance, "revision", lambda: "0.1.0+another")
    assert fl_sim(*command).exit_code == 0
    assert len(measured) == 4
    assert {row["revision"] for row in json.loads((tmp_path / "attacks.json").read_text())["rows"]} == {"0.1.0+another"}
    assert "Revision: 0.1.0+another." in (tmp_path / "attacks.md").read_text()


def measurement(**case: Any) -> AttackMeasurement:
    return AttackMeasurement(Case(suite="test", **case), CONTENDERS["residual"], 0, 3, "cpu", BUNDLED)


def rehearse(monkeypatch: pytest.MonkeyPatch, images: list[Tensor], timesteps: list[int]) -> None:
    """Every attack finds ``images`` one after the other, in a minute and 100 evaluations each."""

    def reconstruct(_: Attack, observation: Observation, seed: int, device: str, trace: Trace) -> Reconstruction:
        trace.snapshots = [Snapshot(100 * i, 60.0 * i, found) for i, found in enumerate(images)]
        trace.own_seconds = 7.0
        final, evaluations, seconds = images[-1], 100 * len(images), 60.0 * len(images) + 7.0
        return Reconstruction(final, torch.tensor(timesteps), 0.1, evaluations, seconds, device, "residual", {}, seed)

    monkeypatch.setattr("attacks.attack.Attack.reconstruct", reconstruct)


def test_the_time_to_40_db_is_seen_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = make_victim(measurement().case, BUNDLED, 3, 0).images
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    # 20, 40.1 and 60 dB but for the clamping of a few pixels
    rehearse(monkeypatch, [truth + error * noise for error in (0.1, 0.0095, 0.001)], [5])
    row = measurement().measure()
    assert (row["evaluations_to_40_db"], row["seconds_to_40_db"]) == (100, 60)
    assert (row["evaluations"], row["seconds"]) == (300, 180)
    assert row["psnr"] == pytest.approx([60], abs=0.5)


def test_timesteps_are_recovered_exactly_not_at_all_or_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = make_victim(measurement(batch_size=4).case, BUNDLED, 3, 0)
    true = truth.timesteps.tolist()
    rehearse(monkeypatch, [torch.full_like(truth.images, math.nan)], [true[2], 999, -1, true[0]])
    row = measurement(batch_size=4).measure()
    assert row["timesteps_verdict"] == {"exact": 2, "unknown": 1, "wrong": 1}
    assert row["psnr"] == [0, 0, 0, 0]
    assert row["evaluations_to_40_db"] is None
    assert measurement(batch_size=4, threat="known").measure()["timesteps_verdict"] is None


def test_images_of_a_batch_are_paired_with_the_truth() -> None:
    truth = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert psnr(truth, truth[[2, 0, 1]] * 0.999).min() > 50


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--only", "stratta"), ("--only stratta", "did you mean 'strata'")),
        (("--attacks", "residul"), ("attack 'residul'", "did you mean 'residual'")),
        (("--device", "tpu"), ("--device tpu",)),
        (("--checkpoint", "gone.safetensors"), ("gone.safetensors",)),
    ],
)
def test_a_wrong_option_is_one_line_and_makes_no_folder(
    tmp_path: Path, arguments: tuple[str, ...], complaint: tuple[str, ...]
) -> None:
    assert_refused(fl_sim("bench", "attacks", *arguments, "--out", tmp_path / "out"), *complaint)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert_refused(fl_sim(*QUICK, "--attacks", f"{TOYS}:Guess", "--out", tmp_path), "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_help_names_every_suite_and_network() -> None:
    text = " ".join(fl_sim("bench", "attacks", "--help").output.replace("│", " ").split())
    assert ", ".join(EVERYTHING) in text
    assert all(f"or {suite}, " in text for suite in ON_REQUEST)
    assert f"all but {' and '.join(ON_REQUEST)}" in text
    assert f"{', '.join(NETWORKS)}." in text


@pytest.fixture
def _signal_handlers() -> Iterator[None]:
    """Put back what a command that ends leaves ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signal_handlers")
def test_a_stopped_benchmark_keeps_what_was_measured_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    measure = AttackMeasurement.measure

    def interrupted(measurement: AttackMeasurement) -> dict[str, Any]:
        if measurement.index:
            signal.raise_signal(signal.SIGINT)  # Ray, where a test has started it, has its own handler of SIGTERM
        return measure(measurement)

    monkeypatch.setattr(AttackMeasurement, "measure", interrupted)
    monkeypatch.setattr("experiments.stopping.os._exit", sys.exit)
    result = fl_sim(*QUICK, "--attacks", f"{TOYS}:Guess", "--out", tmp_path)
    assert result.exit_code == 130
    last_words = f"fl-sim: stopped; --out {tmp_path} with the same options goes on from here"
    assert capfd.readouterr().err.splitlines()[-1] == last_words
    assert len(json.loads((tmp_path / "attacks.json").read_text())["rows"]) == 1


def test_one_image_that_stands_for_several_is_compared_with_their_mean() -> None:
    images = torch.rand(4, 3, 8, 8)
    assert len(psnr(images, images[:1])) == 1
    assert psnr(images, images[:1]) < psnr(images, images.mean(dim=0, keepdim=True))
