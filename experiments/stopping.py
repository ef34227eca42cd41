"""How a command ends on Ctrl-C, SIGTERM or SIGHUP: with one line on stderr, exit code 128 + the signal."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from types import FrameType
from typing import Any, NoReturn

import psutil

_STOPPING: dict[str, Any] = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGHUP": signal.SIG_DFL,  # not on Windows
}
"""The signals, with the handlers that a process starts with. A process that ignores one (nohup) goes on ignoring it."""

_SHOW_CURSOR = "\x1b[?25h\n"
"""Shows the cursor again, which a live display hides."""


@contextmanager
def stoppable(last_words: Callable[[], str], at_once: bool) -> Iterator[None]:
    """End the process at a signal, with the line ``last_words()``; in the main thread only.

    ``at_once``: the process ends without any clean-up, after all processes below it were killed. Commands that use Ray
    need this: Ray ends the process without a word if a thread calls it while it shuts down. No file is left half
    written. Otherwise KeyboardInterrupt is raised, and the process ends when the block is left.
    """
    caught: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        if at_once:
            end_at_once(last_words(), 128 + number)
        caught.append(number)
        raise KeyboardInterrupt

    before = {}
    for name, usual in _STOPPING.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is usual:
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if caught else handler)
        if caught:
            _say(last_words())
            os._exit(128 + caught[0])


def end_at_once(last_words: str, code: int) -> NoReturn:
    """End the process with that line and exit code, from any thread, after all processes below it were killed."""
    below = psutil.Process().children(recursive=True)  # found before the line, so that nothing comes after it
    _say(last_words)
    _kill(below)
    os._exit(code)


def follow_parent() -> None:
    """In a process that multiprocessing started: leave Ctrl-C to the parent, and end, with all below, when that has.

    Ctrl-C reaches every process of a terminal.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _kill(psutil.Process().children(recursive=True))
    os._exit(1)


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _say(last_words: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        if sys.stdout is not None:  # closed before the start
            sys.stdout.flush()
        # Not by sys.stderr, which a live display takes for itself.
        os.write(2, f"{_SHOW_CURSOR if os.isatty(2) else ''}fl-sim: {last_words}\n".encode())
