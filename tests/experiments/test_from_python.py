"""Runs from Python: started, told to callbacks, and loaded again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

import experiments
import fl_sim
from experiments import metrics
from experiments.callbacks import Callback
from experiments.launch import resume
from experiments.leakage import read_leakage
from experiments.loaded_run import Images, LoadedRun
from experiments.run_directory import RunDirectory
from experiments.settings import PRESETS, load_run
from fl_sim.config import SettingsError
from tests.experiments.in_process import without_ray
from tests.experiments.test_resume import Killed, recording

GUESS, FAIL = "tests.attacks.toy_attacks:Guess", "tests.attacks.toy_attacks:Fail"
TINY: Mapping[str, Any] = {
    "client.seed": 3,
    "client.batch_size": 2,
    "federation.clients": 2,
    "federation": {"rounds": 2},
    "model": {"checkpoint": "none", "block_out_channels": [8], "norm_num_groups": 4},
    "utility.samples": 0,
    "attack.name": [GUESS, FAIL],
}


class Diary(Callback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.attacks: list[tuple[list[dict[str, Any]], Images]] = []
        self.attacked: list[list[dict[str, Any]]] = []

    def on_round(self, row: dict[str, Any]) -> None:
        self.rounds.append(row)

    def on_attack(self, rows: list[dict[str, Any]], images: Images) -> None:
        self.attacks.append((rows, images))

    def on_round_attacked(self, rows: list[dict[str, Any]]) -> None:
        self.attacked.append(rows)


class Broken(Callback):
    """Fails in the first round, and counts how often it is called."""

    calls = 0

    def on_round(self, row: dict[str, Any]) -> None:
        self.calls += 1
        raise RuntimeError("no connection\nto the tracker")


def run(out: Path, *callbacks: Callback, **more: Any) -> LoadedRun:
    with without_ray():
        return experiments.run({**TINY, **more}, out=out, callbacks=callbacks, quiet=True)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedRun, Diary]:
    diary = Diary()
    return run(tmp_path_factory.mktemp("told") / "run", diary), diary


def test_it_returns_what_loading_gives(told: tuple[LoadedRun, Diary]) -> None:
    run, loaded = told[0], fl_sim.load(str(told[0].path))
    assert loaded.settings == run.settings
    assert loaded.settings.attack.names == (GUESS, FAIL)
    pd.testing.assert_frame_equal(loaded.leakage, read_leakage(run.path / "leakage.csv"))
    assert loaded.rounds["round"].tolist() == [1, 2]
    assert (run.path / "report.html").is_file()


def test_images_are_in_the_order_of_the_table(told: tuple[LoadedRun, Diary]) -> None:
    run = told[0]
    last = run.leakage.iloc[-1]
    images = run.images(round=last["round"], client=last["client"])
    assert images.originals is not None
    assert images.originals.shape == (2, 3, 16, 16)
    assert list(images.reconstructions) == ["guess"]
    rows = run.leakage[(run.leakage["round"] == 2) & (run.leakage["client"] == 1) & (run.leakage["attack"] == "guess")]
    found = metrics.psnr(images.originals, images.reconstructions["guess"])
    assert found.tolist() == pytest.approx(rows["psnr"].tolist())


def test_without_the_image_set_there_are_no_originals(told: tuple[LoadedRun, Diary], tmp_path: Path) -> None:
    gone = told[0].settings.model_copy(deep=True)
    data = gone.data.model_copy(update={"name": "folder", "path": tmp_path / "gone"})
    elsewhere = LoadedRun(told[0].path, gone.model_copy(update={"data": data}), told[0].leakage, told[0].rounds)
    images = elsewhere.images(1, 0)
    assert images.originals is None
    assert images.reconstructions["guess"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("where", [(0, 0), (3, 0), (1, 2), (1, -2)])
def test_images_of_nobody(told: tuple[LoadedRun, Diary], where: tuple[int, int]) -> None:
    with pytest.raises(SettingsError, match="not in this run; allowed: rounds 1 to 2, clients 0 to 1"):
        told[0].images(*where)


def test_peers_and_sums(tmp_path: Path) -> None:
    summed = run(tmp_path / "sum", **{"defence.name": "secure-aggregation", "attack.name": GUESS}).images(1, -1)
    assert summed.originals is not None
    assert summed.originals.shape == summed.reconstructions["guess"].shape == (4, 3, 16, 16)
    ring = {"federation.topology": "ring", "strategy.name": "Gossip", "federation.curious_peers": [0]}
    gossip = run(tmp_path / "ring", **ring, **{"attack.name": GUESS, "federation.clients": 3})
    assert list(gossip.images(1, 1, observer=0).reconstructions) == ["guess"]
    assert gossip.images(1, 1, observer=2).reconstructions == {}
    assert gossip.images(1, 1).reconstructions == {}


def test_a_run_that_was_broken_off_is_loaded_as_it_is(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", load_run(TINY))
    loaded = fl_sim.load(directory.path)
    assert loaded.leakage.empty
    assert loaded.rounds.empty
    assert loaded.images(1, 0).originals is not None
    directory.rounds.write_bytes(b"PAR1")
    with pytest.raises(SettingsError, match=r"rounds.parquet: damaged"):
        fl_sim.load(directory.path)
    with pytest.raises(SettingsError, match="not a run directory"):
        fl_sim.load(tmp_path)


def test_settings_from_anything(tmp_path: Path) -> None:
    settings = load_run(TINY)
    assert (settings.client.batch_size, settings.federation.rounds) == (2, 2)
    assert load_run(settings) == settings
    (tmp_path / "own").write_text('task = "diffusion"\nseed = 5')
    assert load_run(tmp_path / "own", ["client.batch_size=3"]).client.batch_size == 3
    assert load_run("demo-16").federation == load_run(PRESETS / "demo-16.toml").federation
    with pytest.raises(SettingsError, match="client is a value, not a table"):
        load_run({"client": 3, "client.lr": 0.1})
    with pytest.raises(SettingsError, match=r"clint.lr = 0.1: unknown setting.*did you mean"):
        load_run({"clint.lr": 0.1})


def test_callbacks_are_told_what_the_tables_say(told: tuple[LoadedRun, Diary]) -> None:
    run, diary = told
    assert [row["train_loss"] for row in diary.rounds] == run.rounds["train_loss"].tolist()
    assert len(diary.attacks) == 2 * 2 * 2
    for rows, images in diary.attacks:
        assert images.originals is not None
        assert len(images.originals) == len(rows) == 2
        failed = rows[0]["status"] != "ok"
        assert list(images.reconstructions) == ([] if failed else [rows[0]["attack"]])
        if not failed:
            found = metrics.psnr(images.originals, images.reconstructions["guess"])
            assert found.tolist() == pytest.approx([row["psnr"] for row in rows])
    assert [len(rows) for rows in diary.attacked] == [8, 8]
    assert [{row["round"] for row in rows} for rows in diary.attacked] == [{1}, {2}]


def test_a_callback_that_fails_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, diary = Broken(), Diary()
    with without_ray():
        loaded = experiments.run(TINY, ["attack.name=none"], out=tmp_path / "run", callbacks=[broken, diary])
    assert broken.calls == 1
    assert len(diary.rounds) == len(loaded.rounds) == 2
    said = capsys.readouterr().out
    assert "Broken failed and is not called again: RuntimeError: no connection to the tracker" in said


def test_after_resuming_a_round_is_told_whole(tmp_path: Path) -> None:
    """The first round's attacks had ended when the run was killed, the second's had not been recorded."""
    with pytest.raises(Killed), recording(2)():  # type: ignore[attr-defined]
        run(tmp_path / "run")
    diary = Diary()
    with without_ray():
        resume(tmp_path / "run", Console(quiet=True), callbacks=[diary])
    assert [row["round"] for row in diary.rounds] == [2]
    assert [len(rows) for rows in diary.attacked] == [8]


def test_tensorboard_gets_scalars_and_images(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from experiments.tensorboard import TensorBoard

    loaded = run(tmp_path / "run", TensorBoard(tmp_path / "run" / "tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = events.Scalars("rounds/train_loss")
    assert [event.step for event in losses] == [1, 2]
    assert [event.value for event in losses] == pytest.approx(loaded.rounds["train_loss"].tolist())
    medians = [event.value for event in events.Scalars("median_psnr/guess")]
    assert medians == pytest.approx(loaded.rounds["median_psnr_guess"].tolist(), abs=1e-4)
    assert [event.value for event in events.Scalars("share_recognisable/fail")] == [0, 0]
    assert {*events.Tags()["images"]} == {"guess/client-0000", "guess/client-0001"}
    image = events.Images("guess/client-0001")[0]
    assert (image.step, image.width, image.height) == (1, 2 * 16 + 6, 2 * 16 + 6)


def test_one_image_for_all_stands_beside_the_mean(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from experiments.tensorboard import TensorBoard

    images = Images(torch.rand(4, 3, 16, 16), {"user-level": torch.rand(1, 3, 16, 16)})
    TensorBoard(tmp_path).on_attack([{"client": -1, "round": 1}], images)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Images("user-level/sum")[0].height == 16 + 4
