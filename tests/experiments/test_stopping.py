import signal
import subprocess
import sys

import pytest

STOPPED_ON_THE_WAY = """
import os, signal, sys
from experiments.stopping import stoppable
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
with stoppable(lambda: "nothing", at_once=True):
    print("before", file=sys.stderr, flush=True)
if before != [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]:
    sys.exit("the handlers are not put back")
at_once = sys.argv[2] == "at once"
with stoppable(lambda: "stopped; these are the last words", at_once):
    print("whole", end="")
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
    finally:
        print("tidied up", file=sys.stderr, flush=True)
    print("goes on", file=sys.stderr)
"""


def stop(number: signal.Signals, at_once: bool = True, prelude: str = "") -> subprocess.CompletedProcess[str]:
    # A shell's background jobs ignore SIGINT, and their children too.
    prelude = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n" + prelude
    code = prelude + STOPPED_ON_THE_WAY
    command = [sys.executable, "-c", code, str(int(number)), "at once" if at_once else "in order"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_process_with_one_line(number: signal.Signals) -> None:
    done = stop(number)
    assert done.returncode == 128 + number
    assert done.stderr.splitlines() == ["before", "fl-sim: stopped; these are the last words"]
    assert done.stdout == "whole"


def test_what_can_be_tidied_up_is() -> None:
    done = stop(signal.SIGTERM, at_once=False)
    assert done.returncode == 143
    assert done.stderr.splitlines() == ["before", "tidied up", "fl-sim: stopped; these are the last words"]


def test_who_ignores_a_signal_goes_on() -> None:
    done = stop(signal.SIGHUP, prelude="signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "goes on"
