"""``fl-sim watch``: the state of a run from its files, whatever they are like."""

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from time import sleep, time

import pandas as pd
import pytest
from rich.console import Console

from experiments import watch as module
from experiments.leakage import LeakageTable, read_leakage
from experiments.progress import Progress, Standing
from experiments.run_directory import RunDirectory
from experiments.watch import Watch, watch
from tests.experiments.made_up_run import make_up_run, tiny_settings
from tests.experiments.test_cli import assert_refused, fl_sim

LIVES = Standing("run", "training round 2", 0.0, 61.0, 1, 2, 1, 4, failed=1, queued=1, running=2, left=250.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    directory = make_up_run(tmp_path_factory.mktemp("made") / "finished")
    directory.model.touch()
    return directory


@pytest.fixture
def begun(tmp_path: Path) -> RunDirectory:
    """A run after the first of two rounds."""
    return make_up_run(tmp_path / "begun", rounds=1, finished=False)


def once(directory: RunDirectory) -> str:
    result = fl_sim("watch", directory.path, "--once")
    assert result.exit_code == 0, result.output
    return result.output.replace("\n", " ")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_a_run_that_has_ended(finished: RunDirectory) -> None:
    before = contents(finished.path)
    shown = once(finished)
    assert "ended; report:" in shown
    assert "2/2" in shown
    assert "4/4" in shown
    assert "1 failed" in shown
    best = read_leakage(finished.leakage_csv).groupby("round")["psnr"].max()
    assert all(f"{value:.1f} dB" in shown for value in best)
    assert contents(finished.path) == before


@pytest.mark.parametrize("damage", ["no round", "text as loss", "no clients"])
def test_tables_of_another_kind_are_one_line(damage: str, begun: RunDirectory) -> None:
    rounds = pd.read_parquet(begun.rounds)
    spoilt = {
        "no round": rounds.drop(columns="round"),
        "text as loss": rounds.assign(train_loss="x"),
        "no clients": rounds.assign(clients_seen=None),
    }[damage]
    spoilt.to_parquet(begun.rounds)
    assert_refused(fl_sim("watch", begun.path, "--once"), "its files are damaged")


def test_what_the_files_say_is_shown_without_control_characters(begun: RunDirectory) -> None:
    replace(LIVES, at=time(), step="\x1b[31mred").save(begun.progress)
    assert "\\x1b[31mred" in once(begun)
    table = begun.leakage_csv.read_text()
    begun.leakage_csv.write_text(table.replace(",ok,", ",fail\x1b[31m,"))
    shown = io.StringIO()
    Watch(Console(file=shown), begun).look()
    assert "fail\\x1b[31m" in shown.getvalue()
    assert "\x1b" not in shown.getvalue()


@pytest.mark.parametrize("name", ["progress", "leakage_csv", "rounds"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name: str, begun: RunDirectory) -> None:
    path = getattr(begun, name)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    once(begun)


def test_a_run_that_goes_on(begun: RunDirectory) -> None:
    replace(LIVES, at=time()).save(begun.progress)
    shown = once(begun)
    for part in ("training round 2", "61 s, about 4 min left", "1/2", "1/4", "1 queued, 2 running, 1 failed", "0.9000"):
        assert part in shown


def test_a_run_without_a_sign_of_life_has_stopped(begun: RunDirectory) -> None:
    replace(LIVES, at=time() - 100).save(begun.progress)
    shown = once(begun)
    assert "stopped; to go on: fl-sim run --resume" in shown
    assert "left" not in shown


def test_a_run_that_starts(tmp_path: Path) -> None:
    shown = once(RunDirectory.create(tmp_path / "run", tiny_settings()))
    assert "starting" in shown
    assert "0/2" in shown


def test_attacks_on_a_run_that_has_ended(begun: RunDirectory) -> None:
    begun.model.touch()
    replace(LIVES, work="attack", step="attacking", at=time()).save(begun.progress)
    assert "attacking" in once(begun)
    replace(LIVES, work="attack", step="attacking", at=time() - 100).save(begun.progress)
    assert "stopped; to go on: the same fl-sim attack once more" in once(begun)


def test_a_run_that_was_killed_after_its_end_has_ended(begun: RunDirectory) -> None:
    begun.model.touch()
    replace(LIVES, step="writing the report", at=time() - 100).save(begun.progress)
    assert "ended" in once(begun)


@pytest.mark.parametrize("name", ["rounds.parquet", "leakage.csv", "progress.json"])
def test_files_that_are_half_written(name: str, begun: RunDirectory) -> None:
    replace(LIVES, at=time()).save(begun.progress)
    whole = (begun.path / name).read_bytes()
    for length in {0, 1, 10, len(whole) // 2, len(whole) - 1}:
        (begun.path / name).write_bytes(whole[:length])
        assert "rounds" in once(begun)
    (begun.path / name).unlink()
    once(begun)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert_refused(fl_sim("watch", tmp_path, "--once"), "no run has begun here")
    (tmp_path / "config.toml").write_text("seed = ")
    assert_refused(fl_sim("watch", tmp_path), "not valid TOML")


def finish(begun: RunDirectory) -> None:
    """What a run does in its last second."""
    table = LeakageTable(begun.leakage_csv, begun.leakage_parquet, read_leakage(begun.leakage_csv).to_dict("records"))
    sleep(0.3)
    table.append([row | {"round": 2} for row in read_leakage(begun.leakage_csv).to_dict("records")[:1]])
    sleep(0.3)
    begun.model.touch()
    begun.progress.unlink()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.05)


@pytest.mark.usefixtures("quick")
def test_it_watches_until_the_run_has_ended(begun: RunDirectory) -> None:
    replace(LIVES, at=0.0).save(begun.progress)  # a clock that is far behind
    output = io.StringIO()
    working = Thread(target=finish, args=(begun,))
    working.start()
    watch(begun.path, Console(file=output, width=200))
    working.join()
    lines = [line.rpartition("s] ")[2] for line in output.getvalue().splitlines()]
    assert lines[0] == "round 1/2: training loss 0.9000, 2 clients"
    assert lines[1].startswith("  round 1 client 0 image 0 residual: ")
    assert lines[-2].startswith("  round 2 client 0 image 0 residual: ")
    assert lines[-1] == f"ended; report: {begun.report}"
    assert len(lines) == 5


@pytest.mark.usefixtures("quick")
def test_it_ends_where_nothing_happens(begun: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_AFTER", 0.2)
    output = io.StringIO()
    watch(begun.path, Console(file=output, force_terminal=True, width=200, color_system=None))
    assert "stopped; to go on: fl-sim run --resume" in output.getvalue()


@pytest.fixture
def watching(begun: RunDirectory) -> Callable[[], Watch]:
    def look() -> Watch:
        found = Watch(Console(quiet=True), begun)
        found.look()
        return found

    return look


def test_what_a_run_shows_is_what_others_see(begun: RunDirectory, watching: Callable[[], Watch]) -> None:
    with Progress(Console(quiet=True), rounds=2, attacks=4, file=begun.progress) as progress:
        progress.step("training round 7")
        assert watching().state(0.0) == "starting Ray and the clients"
        begun.progress.unlink()
        while not begun.progress.exists():
            sleep(0.05)
        assert watching().state(0.0) == "training round 7"
    assert not begun.progress.exists()
    assert watching().state(100.0) == "stopped"
