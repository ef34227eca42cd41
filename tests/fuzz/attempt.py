"""One bad input, read as a command reads it, and what came of it."""

import io
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from unittest.mock import patch

import typer
from rich.console import Console

from experiments.commands import one_line_errors

REFUSED, ACCEPTED, TRACEBACK, HUNG, OUTSIDE, MEMORY, UNCLEAR = OUTCOMES = (
    "refused",
    "accepted",
    "traceback",
    "hung",
    "left its folder",
    "too much memory",
    "not one line",
)
FAULTS = OUTCOMES[2:]

SECONDS = 60
"""A reader that takes longer hangs."""
MEMORY_FACTOR, MEMORY_MIB = 16, 256
"""A reader may take this many times the input's size, and this many MiB beside it for what is built only once; images
may take more."""

TRIPWIRE = "tests.fuzz.tripwire"


@dataclass(frozen=True)
class Outcome:
    """What came of an input: one of OUTCOMES, with the line that was printed or the traceback."""

    kind: str
    text: str = ""


class _Hung(BaseException):
    pass


def attempt(
    read: Callable[[Path], object], folder: Path, imports: bool = False, memory_mib: int = MEMORY_MIB
) -> Outcome:
    """Let ``read`` read the input in ``folder``, within limits of time and memory, and see that it stays there.

    ``imports``: whether the code that it names may be imported. ``memory_mib``: as ``Kind`` has it.
    """
    before, size = _listing(folder.parent), sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    said = io.StringIO()
    started = _start_measuring_memory()
    try:
        with (
            _time_limit(),
            patch("experiments.commands.errors", Console(file=said, soft_wrap=True, highlight=False, markup=False)),
            one_line_errors(),
        ):
            read(folder)
    except typer.Exit as error:
        line = said.getvalue().removesuffix("\n")
        clear = error.exit_code in (1, 2) and line.isprintable() and line.startswith("fl-sim: ")
        outcome = Outcome(REFUSED if clear else UNCLEAR, line)
    except _Hung:
        outcome = Outcome(HUNG, traceback.format_exc())
    except BaseException:
        outcome = Outcome(TRACEBACK, traceback.format_exc())
    else:
        outcome = Outcome(ACCEPTED)
    if (taken := _memory_since(started)) > MEMORY_FACTOR * size + memory_mib * 2**20:
        return Outcome(MEMORY, f"{taken / 2**20:.0f} MiB for an input of {size / 2**20:.2f}; {outcome}")
    if TRIPWIRE in sys.modules:
        del sys.modules[TRIPWIRE]
        if not imports:
            return Outcome(OUTSIDE, f"imported {TRIPWIRE}; {outcome}")
    if changed := _listing(folder.parent) ^ before:
        return Outcome(OUTSIDE, f"wrote {min(changed)}; {outcome}")
    return outcome


def _listing(folder: Path) -> set[Path]:
    return set(folder.iterdir())


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise _Hung

    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _start_measuring_memory() -> int | None:
    """Memory now, in bytes; the peak is measured from here. None where the system cannot."""
    try:
        _CLEAR.write_text("5")
        return _status("VmRSS")
    except (OSError, KeyError):
        return None


def _memory_since(started: int | None) -> int:
    return 0 if started is None else _status("VmHWM") - started


def _status(key: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return 1024 * int(lines[key].split()[0])
