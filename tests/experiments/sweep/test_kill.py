"""``fl-sim sweep`` killed in the middle; the short form of ``python -m tests.kill_and_resume --sweep``."""

import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.run_directory import RunDirectory
from tests.experiments.in_process import without_ray
from tests.kill_and_resume import finish, start, sweep_differences, sweep_file
from tests.processes import with_descendants

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep in this process."""
    folder = tmp_path_factory.mktemp("sweep")
    with without_ray(), patch("experiments.launch.build_report", lambda path: (path / "report.html").touch()):
        result = CliRunner().invoke(app, ["sweep", str(sweep_file(folder)), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    (folder / "out" / "logs").mkdir()
    return folder / "out"


def test_killed_alone_and_then_stopped_it_ends_as_if_left_alone(
    undisturbed: Path, tmp_path: Path, ray_environment: dict[str, str]
) -> None:
    arguments = ["sweep", str(sweep_file(tmp_path)), "--out", str(tmp_path / "out"), "--jobs", "2"]
    first, log = RunDirectory(tmp_path / "out" / "batch_size=1"), tmp_path / "out" / "logs" / "batch_size=1.log"
    killed, everybody = _started(arguments, ray_environment, first.captures.exists)
    killed.kill()
    assert not psutil.wait_procs(everybody, timeout=60)[1]
    stopped, _ = _started(arguments, ray_environment, lambda: "going on after" in log.read_text())
    stopped.send_signal(signal.SIGINT)
    output, _ = stopped.communicate(timeout=10)
    assert stopped.returncode == 128 + signal.SIGINT, output
    assert output.splitlines()[-1] == f"fl-sim: stopped; to go on: {shlex.join(['fl-sim', *arguments])}"
    finish(arguments, ray_environment)
    assert sweep_differences(tmp_path / "out", undisturbed) == []


def _started(
    arguments: list[str], environment: dict[str, str], happened: Callable[[], bool]
) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start ``fl-sim`` and wait until that has happened; the first process and all that there are then."""
    running = start(arguments, environment)
    while not happened():
        assert running.poll() is None, running.communicate()
        time.sleep(0.1)
    return running, with_descendants(running.pid)
