import math
import os
import signal
import subprocess
import sys

import psutil
import pytest

from experiments.bench.processes import side_by_side
from fl_sim.config import SettingsError


def test_results_come_from_all_processes() -> None:
    assert sorted(side_by_side(math.sqrt, [4.0, 9.0, 16.0], workers=2)) == [2, 3, 4]


def test_a_process_that_dies_is_one_line() -> None:
    with pytest.raises(SettingsError, match="--jobs 2: one of them died"):
        list(side_by_side(os._exit, [1, 1], workers=2))


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_first(ending: signal.Signals) -> None:
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from experiments.bench.processes import side_by_side\n"
        "if __name__ == '__main__':\n"
        "    for _ in side_by_side(time.sleep, [0, 600, 600], 2): print('started', flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"started\n"
    children = psutil.Process(parent.pid).children()
    assert len(children) >= 2
    os.killpg(parent.pid, ending) if ending == signal.SIGINT else parent.kill()
    parent.wait(20)
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
