"""``fl-sim run`` when processes are killed under it; what is left must be what an undisturbed run leaves.

It is one run, as every start of Ray takes seconds: it is terminated, goes on and is killed, goes on and loses its
attack worker, and ends.
"""

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from tests.experiments.in_process import without_ray
from tests.kill_and_resume import differences, start
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
    "attack.args.residual.max_evaluations=150",
    "attack.args.residual.precision=1e-9",
)


class Running:
    """An ``fl-sim run`` in processes of its own."""

    def __init__(self, out: Path, arguments: list[str], environment: dict[str, str]) -> None:
        self.directory = RunDirectory(out)
        self.popen = start(arguments, environment)

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


def beginning(out: Path) -> list[str]:
    """The arguments that begin the run."""
    return ["run", "demo-16", *(word for setting in SETTINGS for word in ("--set", setting)), "--out", str(out)]


@contextmanager
def started(out: Path, environment: dict[str, str], before: RunDirectory | None = None) -> Iterator[Running]:
    """The run from its beginning, or as it goes on from a copy of what was left before."""
    if before is not None:
        shutil.copytree(before.path, out)
    running = Running(out, beginning(out) if before is None else ["run", "--resume", str(out)], environment)
    try:
        yield running
    finally:
        kill_all(running.processes())
        running.popen.communicate()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The same run in this process."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with without_ray():
        result = CliRunner().invoke(app, beginning(out))
    assert result.exit_code == 0, result.output
    return RunDirectory(out)


@dataclass(frozen=True)
class Ended:
    """A run's directory, what it printed, its exit code, and who lived on."""

    directory: RunDirectory
    output: str
    code: int
    alive: list[psutil.Process] = field(default_factory=list)


@pytest.fixture(scope="module")
def terminated(tmp_path_factory: pytest.TempPathFactory, ray_environment: dict[str, str]) -> Ended:
    """The run that got a SIGTERM in its first attack."""
    with started(tmp_path_factory.mktemp("terminated") / "run", ray_environment) as running:
        running.wait_for(running.directory.rounds.exists)  # the model is measured beside the first attack
        running.wait_for(running.attacking)
        everybody = running.processes()
        running.popen.terminate()
        output, _ = running.popen.communicate(timeout=300)
        _, alive = psutil.wait_procs(everybody, timeout=30)
    return Ended(running.directory, output, running.popen.returncode, alive)


@pytest.fixture(scope="module")
def killed(
    terminated: Ended, tmp_path_factory: pytest.TempPathFactory, ray_environment: dict[str, str]
) -> RunDirectory:
    """The run that was killed with all its processes after its first attack."""
    with started(tmp_path_factory.mktemp("killed") / "run", ray_environment, terminated.directory) as running:
        running.wait_for(running.has_a_row)
        kill_all(running.processes())
    return running.directory


@pytest.fixture(scope="module")
def survivor(killed: RunDirectory, tmp_path_factory: pytest.TempPathFactory, ray_environment: dict[str, str]) -> Ended:
    """The run that lost its only attack worker in the middle of an attack."""
    with started(tmp_path_factory.mktemp("survivor") / "run", ray_environment, killed) as running:
        running.wait_for(running.attacking)
        kill_all(running.attacking())
        output, _ = running.popen.communicate(timeout=300)
    return Ended(running.directory, output, running.popen.returncode)


def test_a_terminated_run_says_so_in_one_line_and_leaves_nobody_behind(terminated: Ended, tmp_path: Path) -> None:
    path = terminated.directory.path
    assert terminated.code == 128 + signal.SIGTERM, terminated.output
    said = terminated.output.splitlines()
    last_round = next(number for number, line in enumerate(said) if re.match(r"\[ *\d+ s\] round 1/1", line))
    assert said[last_round + 1 :] == [
        f"fl-sim: stopped; what was computed is in {path}, and fl-sim report {path} shows it; to go on: fl-sim run "
        f"--resume {path}"
    ]
    assert not terminated.alive
    assert read_leakage(terminated.directory.leakage_csv)["status"].tolist() == []
    report(terminated.directory, tmp_path)


def test_a_killed_run_keeps_what_was_reconstructed_and_the_report_reads_it(
    killed: RunDirectory, undisturbed: RunDirectory, tmp_path: Path
) -> None:
    assert not killed.report.exists()
    left = read_leakage(killed.leakage_csv)
    assert left["client"].tolist() == [0]
    whole = read_leakage(undisturbed.leakage_csv)
    pd.testing.assert_frame_equal(_timeless(left), _timeless(whole.head(1)), check_exact=True)
    assert load_reconstruction(killed.reconstruction(1, 0, "residual")).evaluations == left["evaluations"][0]
    assert [Observation.load(file).circumstances.client for file in sorted(killed.captures.iterdir())] == [0, 1]
    report(killed, tmp_path)


def test_a_killed_attack_worker_is_replaced_and_its_job_done_again(survivor: Ended) -> None:
    assert survivor.code == 0, survivor.output
    assert "attack worker died during residual on round-0001-client-0001.safetensors: tried again" in survivor.output
    leakage = read_leakage(survivor.directory.leakage_csv)
    assert leakage["status"].tolist() == ["ok", "ok"]
    assert leakage["timestep_recovered"].equals(leakage["timestep"])
    assert survivor.directory.report.is_file()


def test_terminated_killed_and_without_its_worker_it_ends_as_if_left_alone(
    survivor: Ended, undisturbed: RunDirectory
) -> None:
    assert "going on after round" in survivor.output
    assert differences(survivor.directory, undisturbed) == []


def test_a_capture_replayed_under_guard_gives_the_reconstruction_of_the_run(survivor: Ended, tmp_path: Path) -> None:
    run = survivor.directory
    shutil.copy(run.captures / "round-0001-client-0001.safetensors", tmp_path / "capture.safetensors")
    in_run = load_reconstruction(run.reconstruction(1, 1, "residual"))
    seed = derive_seed(0, "attack", "residual", 1, 1)
    assert torch.equal(replay(tmp_path, in_run.settings, seed, in_run.images.shape), in_run.images)


def report(left: RunDirectory, folder: Path) -> None:
    """``fl-sim report`` reads what was left, of which it gets a copy."""
    copy = RunDirectory(shutil.copytree(left.path, folder / "run"))
    result = CliRunner().invoke(app, ["report", str(copy.path)])
    assert result.exit_code == 0, result.output
    assert copy.report.is_file()


def _timeless(leakage: pd.DataFrame) -> pd.DataFrame:
    return leakage.drop(columns=list(TIME_COLUMNS))
