"""``fl-sim run`` when processes are killed under it; what is left must be what an undisturbed run leaves."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from typer.testing import CliRunner

from attacks.observation import Observation
from attacks.reconstruction_file import load_reconstruction
from experiments.cli import app
from experiments.leakage import TIME_COLUMNS, read_leakage
from experiments.run_directory import RunDirectory
from fl_sim.draws import derive_seed
from tests.attacks.guard import replay
from tests.kill_and_resume import differences
from tests.processes import kill_all, with_descendants

pytestmark = pytest.mark.ray

# Long enough for an attack to be caught in the act: some seconds, and never solved.
SETTINGS = (
    "client.seed=11",
    "federation.clients=2",
    "federation.rounds=1",
    "federation.client_cpus=2",
    "model.checkpoint=none",
    "model.block_out_channels=[8, 8]",
    "model.norm_num_groups=4",
    "attack.workers=1",
    "attack.args.residual.max_evaluations=300",
    "attack.args.residual.precision=1e-9",
)


class Running:
    """An ``fl-sim run`` in processes of its own."""

    def __init__(self, out: Path, environment: dict[str, str]) -> None:
        self.directory = RunDirectory(out)
        words = [word for setting in SETTINGS for word in ("--set", setting)]
        program = Path(sys.executable).with_name("fl-sim")
        self.popen = subprocess.Popen(
            [program, "run", "demo-16", *words, "--out", out],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def processes(self) -> list[psutil.Process]:
        return with_descendants(self.popen.pid)

    def attacking(self) -> list[psutil.Process]:
        """The attack workers that are at work: Ray puts the method that an actor runs into its title."""
        return [process for process in self.processes() if "ray::AttackWorker.attack" in _title(process)]

    def has_a_row(self) -> bool:
        table = self.directory.leakage_csv
        return table.exists() and table.read_text().count("\n") > 1

    def wait_for(self, happened: Callable[[], object]) -> None:
        end = time.monotonic() + 300
        while not happened():
            assert self.popen.poll() is None, self.popen.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def started(out: Path, environment: dict[str, str]) -> Iterator[Running]:
    running = Running(out, environment)
    try:
        yield running
    finally:
        kill_all(running.processes())
        running.popen.communicate()


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory, ray_environment: dict[str, str]) -> RunDirectory:
    """The run that lost its only attack worker in the middle of the first attack."""
    with started(tmp_path_factory.mktemp("survivor") / "run", ray_environment) as running:
        running.wait_for(running.attacking)
        kill_all(running.attacking())
        output, _ = running.popen.communicate(timeout=300)
        assert running.popen.returncode == 0, output
        return running.directory


def test_a_killed_attack_worker_is_replaced_and_its_job_done_again(survivor: RunDirectory) -> None:
    leakage = read_leakage(survivor.leakage_csv)
    assert leakage["status"].tolist() == ["ok", "ok"]
    assert leakage["timestep_recovered"].equals(leakage["timestep"])
    assert survivor.report.is_file()


def test_a_capture_replayed_under_guard_gives_the_reconstruction_of_the_run(
    survivor: RunDirectory, tmp_path: Path
) -> None:
    shutil.copy(survivor.captures / "round-0001-client-0001.safetensors", tmp_path / "capture.safetensors")
    in_run = load_reconstruction(survivor.reconstruction(1, 1, "residual"))
    seed = derive_seed(0, "attack", "residual", 1, 1)
    assert torch.equal(replay(tmp_path, in_run.settings, seed, in_run.images.shape), in_run.images)


def test_a_killed_run_keeps_what_was_reconstructed_and_the_report_reads_it(
    survivor: RunDirectory, tmp_path: Path, ray_environment: dict[str, str]
) -> None:
    with started(tmp_path / "run", ray_environment) as running:
        running.wait_for(running.has_a_row)
        kill_all(running.processes())
    directory = running.directory
    assert not directory.report.exists()
    left = read_leakage(directory.leakage_csv)
    assert left["client"].tolist() == [0]
    undisturbed = read_leakage(survivor.leakage_csv)
    pd.testing.assert_frame_equal(_timeless(left), _timeless(undisturbed.head(1)), check_exact=True)
    assert load_reconstruction(directory.reconstruction(1, 0, "residual")).evaluations == left["evaluations"][0]
    assert [Observation.load(file).circumstances.client for file in sorted(directory.captures.iterdir())] == [0, 1]
    result = CliRunner().invoke(app, ["report", str(directory.path)])
    assert result.exit_code == 0, result.output
    assert directory.report.is_file()
    program = Path(sys.executable).with_name("fl-sim")
    resumed = subprocess.run(
        [program, "run", "--resume", directory.path], env=ray_environment, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after round" in resumed.stdout
    assert differences(directory, survivor) == []


def test_a_terminated_run_says_so_in_one_line_and_leaves_nobody_behind(
    tmp_path: Path, ray_environment: dict[str, str]
) -> None:
    with started(tmp_path / "run", ray_environment) as running:
        running.wait_for(running.directory.rounds.exists)  # the model is measured beside the first attack
        running.wait_for(running.attacking)
        everybody = running.processes()
        running.popen.terminate()
        output, _ = running.popen.communicate(timeout=300)
        _, alive = psutil.wait_procs(everybody, timeout=30)
    path = running.directory.path
    assert running.popen.returncode == 128 + signal.SIGTERM, output
    said = output.splitlines()
    last_round = next(number for number, line in enumerate(said) if re.match(r"\[ *\d+ s\] round 1/1", line))
    assert said[last_round + 1 :] == [
        f"fl-sim: stopped; what was computed is in {path}, and fl-sim report {path} shows it; to go on: fl-sim run "
        f"--resume {path}"
    ]
    assert not alive
    assert read_leakage(running.directory.leakage_csv)["status"].tolist() == []
    result = CliRunner().invoke(app, ["report", str(path)])
    assert result.exit_code == 0, result.output


def _timeless(leakage: pd.DataFrame) -> pd.DataFrame:
    return leakage.drop(columns=list(TIME_COLUMNS))
