"""``fl-sim sweep`` killed in the middle; the short form of ``python -m tests.kill_and_resume --sweep``."""

import time
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.run_directory import RunDirectory
from tests.experiments.in_process import without_ray
from tests.kill_and_resume import start, sweep_differences, sweep_file
from tests.processes import with_descendants

pytestmark = pytest.mark.ray

SIZES = (2,)
"""One run: every start of Ray takes seconds."""


def in_this_process(arguments: list[str]) -> None:
    """The command to its end, without Ray."""
    with without_ray(), patch("experiments.launch.build_report", lambda path: (path / "report.html").touch()):
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep in this process."""
    folder = tmp_path_factory.mktemp("sweep")
    in_this_process(["sweep", str(sweep_file(folder, SIZES)), "--out", str(folder / "out")])
    (folder / "out" / "logs").mkdir()
    return folder / "out"


def test_killed_alone_it_ends_as_if_left_alone(
    undisturbed: Path, tmp_path: Path, ray_environment: dict[str, str]
) -> None:
    arguments = ["sweep", str(sweep_file(tmp_path, SIZES)), "--out", str(tmp_path / "out")]
    first = RunDirectory(tmp_path / "out" / "batch_size=2")
    killed = start(arguments, ray_environment)
    while not first.captures.exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.1)
    everybody = with_descendants(killed.pid)
    killed.kill()
    assert not psutil.wait_procs(everybody, timeout=120)[1]
    assert not first.report.exists()
    in_this_process(arguments)  # the Ray of a run that is resumed is test_faults.py's
    assert sweep_differences(tmp_path / "out", undisturbed) == []
