import signal
import subprocess
import sys

import pytest

STOPPED_IN_NATIVE_CODE = """
import os, signal, sys
from experiments.stopping import stoppable
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
with stoppable(lambda: "nothing"):
    print("before", file=sys.stderr, flush=True)
if before != [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]:
    sys.exit("the handlers are not put back")
with stoppable(lambda: "stopped; these are the last words"):
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
    finally:
        os.write(2, b"what native code says of its end\\n")
    print("goes on", file=sys.stderr)
"""


def stop(
    number: signal.Signals, prelude: str = "", code: str = STOPPED_IN_NATIVE_CODE
) -> subprocess.CompletedProcess[str]:
    # A shell's background jobs ignore SIGINT, and their children too.
    prelude = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n" + prelude
    command = [sys.executable, "-c", prelude + code, str(int(number))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_process_with_one_line(number: signal.Signals) -> None:
    done = stop(number)
    assert done.returncode == 128 + number
    assert done.stderr.splitlines() == ["before", "fl-sim: stopped; these are the last words"]


@pytest.mark.parametrize("library", ["raise RuntimeError('half way')", "print('goes on', file=sys.stderr)"])
def test_a_library_that_makes_something_else_of_the_signal_changes_nothing(library: str) -> None:
    done = stop(
        signal.SIGTERM, code=STOPPED_IN_NATIVE_CODE.replace("finally:", f"except KeyboardInterrupt:\n        {library}")
    )
    assert done.returncode == 143
    assert done.stderr.splitlines() == ["before", "fl-sim: stopped; these are the last words"]


def test_who_ignores_a_signal_goes_on() -> None:
    done = stop(signal.SIGHUP, "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "goes on"
