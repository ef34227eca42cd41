"""Runs side by side, in processes; what they do here takes no time but that of their start."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from experiments.sweep.processes import Task, side_by_side
from tests.experiments.sweep.working import work


def tasks(folder: Path, *names: str) -> list[Task]:
    return [Task(name, folder / "settings", folder / name, folder / "logs" / name) for name in names]


def test_those_that_fail_or_die_do_not_end_the_others(tmp_path: Path) -> None:
    begun: list[str] = []
    found = side_by_side(
        tasks(tmp_path, "good", "refused", "broken", "killed", "better"), 2, lambda task: begun.append(task.name), work
    )
    assert {task.name: reason for task, reason in found} == {
        "good": None,
        "refused": "client.lr = 3: too much",
        "broken": "RuntimeError: a bug",
        "killed": "its process was ended by signal 9",
        "better": None,
    }
    assert begun == ["good", "refused", "broken", "killed", "better"]
    assert all((tmp_path / name).is_file() for name in ("good", "better"))
    assert (tmp_path / "logs" / "refused").read_text().splitlines() == ["at work", "fl-sim: client.lr = 3: too much"]


SLEEPING = """
import subprocess, sys, time
from pathlib import Path
from experiments.sweep.processes import Task, side_by_side

def sleep(task):
    below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    task.out.write_text(f"{below.pid}.")
    time.sleep(600)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    list(side_by_side([Task("a", folder, folder / "a", folder / "log")], 1, print, sleep))
"""


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_first(tmp_path: Path, ending: signal.Signals) -> None:
    script = tmp_path / "sleeping.py"
    script.write_text(SLEEPING)
    parent = subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    told = tmp_path / "a"
    while not told.is_file() or not told.read_text().endswith("."):
        assert parent.poll() is None
        time.sleep(0.1)
    below = psutil.Process(parent.pid).children(recursive=True)
    assert int(told.read_text()[:-1]) in {process.pid for process in below}
    parent.send_signal(ending)
    parent.wait(20)
    assert not psutil.wait_procs(below, timeout=20)[1]
