"""Full and read-only disks, rounds that cannot be used, clocks that go back, two runs at once.

A run under them ends in one line and goes on to what it would have been, or is what it would have been.
"""

import re
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from time import time
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from flwr.app import Array, Context, Error, Message
from typer.testing import CliRunner

from experiments import run_directory
from experiments.cli import app
from experiments.leakage import read_leakage
from experiments.progress import Progress
from experiments.run_directory import RunDirectory
from experiments.settings import load_run
from fl_sim.config import SettingsError, resolve
from fl_sim.local_grid import Client
from fl_sim.wire import ARRAYS, CONFIG, ROUND
from strategies.fed_sgd import FedSGD
from tests.disk import Disk
from tests.experiments.in_process import federation_in_process, without_ray
from tests.experiments.test_resume import TINY
from tests.kill_and_resume import differences


def run(*words: str) -> Result:
    with without_ray():
        return CliRunner().invoke(app, ["run", *words])


def begin(out: Path) -> Result:
    return run("demo-16", *(word for setting in TINY for word in ("--set", setting)), "--out", str(out))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert begin(out).exit_code == 0
    return RunDirectory(out)


def assert_goes_on(out: Path, undisturbed: RunDirectory) -> None:
    resumed = run("--resume", str(out))
    assert resumed.exit_code == 0, resumed.output
    assert differences(RunDirectory(out), undisturbed) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    if not disk.mount("size=10m"):
        pytest.skip("only root may mount a file system, and not in every container")
    yield disk
    disk.unmount()


@pytest.mark.parametrize("pages", [2, 12, 40])
def test_a_full_disk(pages: int, disk: Disk, undisturbed: RunDirectory) -> None:
    disk.remount(f"size={pages * 4}k")
    out = disk.place / "run"
    full = begin(out)
    assert full.exit_code == 2, full.output
    assert full.stderr.count("\n") == 1
    assert "No space left on device" in full.stderr
    assert str(out) in full.stderr
    disk.remount("size=10m")
    assert_goes_on(out, undisturbed)


def test_a_disk_that_turns_read_only(disk: Disk, undisturbed: RunDirectory) -> None:
    round_done = Progress.round_done

    def turning(display: Progress, finished: object) -> None:
        round_done(display, finished)
        if finished.round == 2:
            disk.remount("ro")

    out = disk.place / "run"
    with patch.object(Progress, "round_done", turning):
        ended = begin(out)
    assert ended.exit_code == 2, ended.output
    assert ended.stderr.count("\n") == 1
    assert "Read-only file system" in ended.stderr
    assert pd.read_parquet(out / "rounds.parquet")["round"].tolist() == [1, 2]
    disk.remount("rw")
    assert_goes_on(out, undisturbed)


def test_a_folder_that_nobody_may_write_to_is_one_line(disk: Disk) -> None:
    disk.remount("ro")
    refused = begin(disk.place / "run")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert str(disk.place) in refused.stderr


def test_of_two_runs_that_begin_in_a_folder_at_the_same_moment_one_is_refused(tmp_path: Path) -> None:
    both, make = threading.Barrier(2), run_directory.make_empty_folder
    settings = [resolve(load_run("demo-16", ["client.seed=9", f"seed={number}"])) for number in range(2)]
    refused: list[str] = []

    def make_at_once(path: Path) -> None:
        make(path)
        both.wait(10)

    def create(number: int) -> None:
        try:
            RunDirectory.create(tmp_path / "run", settings[number])
        except SettingsError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(2)]
    with patch.object(run_directory, "make_empty_folder", make_at_once):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(refused) == 1
    assert refused[0].startswith(f"--out {tmp_path / 'run'}: ")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.toml"]


Spoil = Callable[[Message, Message], Message]


def in_round_three(spoil: Spoil) -> object:
    """Every client's reply to the third train message is spoilt."""

    def federation(server_app: object, client_app: Client, settings: object, *_: object, **__: object) -> None:
        def client(message: Message, context: Context) -> Message:
            reply = client_app(message, context)
            third = message.content.config_records.get(CONFIG, {}).get(ROUND) == 3
            return spoil(message, reply) if third else reply

        federation_in_process(server_app, client, settings)

    return patch("tests.experiments.in_process.federation_in_process", federation)


def not_a_number(_: Message, reply: Message) -> Message:
    arrays = reply.content.array_records[ARRAYS]
    for name, array in list(arrays.items()):
        arrays[name] = Array(np.full(array.shape, np.nan, np.float32))
    return reply


def cut_in_half(_: Message, reply: Message) -> Message:
    for array in reply.content.array_records[ARRAYS].values():
        array.data = array.data[: len(array.data) // 2]
    return reply


def no_reply(asked: Message, _: Message) -> Message:
    return Message(Error(0, "gone"), reply_to=asked)


def raising_in_round_three() -> object:
    aggregate = FedSGD.aggregate_train

    def raising(strategy: FedSGD, server_round: int, replies: object) -> object:
        if server_round == 3:
            raise ZeroDivisionError("nothing to divide by")
        return aggregate(strategy, server_round, replies)

    return patch.object(FedSGD, "aggregate_train", raising)


@pytest.mark.parametrize(
    ("disturbance", "reason"),
    [
        (lambda: in_round_three(not_a_number), "round 3: no client trained; client 0: the reply's .* holds NaN"),
        (lambda: in_round_three(cut_in_half), "round 3: no client trained; client 0: the reply cannot be read"),
        (lambda: in_round_three(no_reply), "round 3: no client trained; client 0: gone"),
        (raising_in_round_three, "round 3: .*nothing to divide by"),
    ],
    ids=["NaN", "halves", "no reply", "a strategy that raises"],
)
def test_what_was_done_is_kept_and_the_run_goes_on_from_there(
    disturbance: Callable[[], object], reason: str, undisturbed: RunDirectory, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with disturbance():
        ended = begin(out)
    assert ended.exit_code in (1, 2), ended.output
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("fl-sim: ")
    assert re.search(reason, ended.stderr), ended.stderr
    assert pd.read_parquet(out / "rounds.parquet")["round"].tolist() == [1, 2]
    assert_goes_on(out, undisturbed)


def test_a_clock_that_goes_back_changes_nothing(undisturbed: RunDirectory, tmp_path: Path) -> None:
    clock = count(time(), -60.0)
    with patch("time.time", lambda: next(clock)), patch("experiments.progress.time", lambda: next(clock)):
        assert begin(tmp_path / "run").exit_code == 0
    run = RunDirectory(tmp_path / "run")
    assert (read_leakage(run.leakage_csv)["seconds"] >= 0).all()
    assert differences(run, undisturbed) == []
