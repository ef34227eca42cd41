"""``fl-sim watch`` of a sweep, from the files of one that was made up."""

import io
from pathlib import Path
from threading import Thread
from unittest.mock import patch

import pandas as pd
import pytest
from rich.console import Console

from experiments.leakage import read_leakage
from experiments.sweep.directory import SweepDirectory
from experiments.sweep.watch import watch_sweep
from tests.experiments.made_up_run import make_up_run
from tests.experiments.test_cli import assert_refused, fl_sim

ROWS = pd.DataFrame(
    {
        "run": ["lr=1", "lr=2", "lr=3", "lr=4"],
        "status": ["ended", "not ended", "failed: no luck", "not ended"],
        "attack": ["residual"] * 4,
        "median_psnr": [33.25, None, None, None],
    }
)


@pytest.fixture
def directory(tmp_path: Path) -> SweepDirectory:
    """A sweep whose first run has ended, whose second goes on, whose third failed, and whose last waits."""
    make_up_run(tmp_path / "lr=1").model.touch()
    make_up_run(tmp_path / "lr=2", rounds=1, finished=False)
    directory = SweepDirectory(tmp_path)
    directory.file.touch()
    ROWS.to_csv(directory.csv, index=False)
    ROWS.to_parquet(directory.parquet)
    return directory


def test_every_run_is_shown_as_it_is(directory: SweepDirectory) -> None:
    result = fl_sim("watch", directory.path, "--once")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: " ".join(line.split()) for line in result.output.splitlines() if line.strip()}
    assert lines["lr=1"] == "lr=1 ended 2/2 4/4 residual 33.2 dB"
    assert lines["lr=2"].startswith("lr=2 starting 1/2")
    assert lines["lr=3"] == "lr=3 failed: no luck residual"
    assert lines["lr=4"] == "lr=4 waiting residual"
    assert len(read_leakage(directory.run("lr=2").leakage_csv)) == 2


def test_a_run_elsewhere_is_not_looked_at(directory: SweepDirectory, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "run\x1b"
    make_up_run(elsewhere)
    ROWS.assign(run=[str(elsewhere), "lr=2", "lr=3", "lr=4"]).to_csv(directory.csv, index=False)
    result = fl_sim("watch", directory.path, "--once")
    assert "\x1b" not in result.output
    assert "2/2" not in result.output


@pytest.mark.parametrize("command", ["watch", "report"])
def test_links_that_lead_out_of_a_sweep_are_refused(command: str, directory: SweepDirectory) -> None:
    (directory.path / "logs").symlink_to("/tmp")
    assert_refused(fl_sim(command, directory.path), "logs: a link that leads out of its folder")


def test_one_without_a_sign_of_life_has_stopped(directory: SweepDirectory) -> None:
    with patch("experiments.sweep.watch.SILENT_AFTER", 0.0):
        words = fl_sim("watch", directory.path, "--once").output.splitlines()[-1]
    assert words == f"stopped; to go on: fl-sim sweep {directory.file} --out {directory.path}"


def test_it_is_watched_until_all_have_ended(directory: SweepDirectory) -> None:
    shown = io.StringIO()
    watching = Thread(target=watch_sweep, args=(directory, Console(file=shown, width=200), False))
    with patch("experiments.sweep.watch.LOOK_EVERY", 0.01):
        watching.start()
        ROWS.assign(status=ROWS["status"].str.replace("not ended", "ended")).to_csv(
            directory.path / "new.csv", index=False
        )
        (directory.path / "new.csv").replace(directory.csv)
        watching.join(timeout=60)
    assert not watching.is_alive()
    assert shown.getvalue().splitlines()[-1] == f"ended; report: {directory.report}"
