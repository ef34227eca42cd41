"""How a command ends on Ctrl-C, SIGTERM or SIGHUP: in order, with one line on stderr, exit code 128 + the signal."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_STOPPING: dict[str, Any] = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGHUP": signal.SIG_DFL,  # not on Windows
}
"""The signals, with the handlers that a process starts with. One that ignores a signal (nohup) goes on doing so."""


@contextmanager
def stoppable(last_words: Callable[[], str]) -> Iterator[None]:
    """Raise KeyboardInterrupt at a signal; once the block is left, print the line ``last_words()`` and end the process.

    In the main thread only. What the block has to say of being stopped is not shown on stderr, and an exception that
    came of it is dropped.
    """
    stderr, caught = os.dup(2), []

    def stop(number: int, _: FrameType | None) -> None:
        caught.append(number)
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (shorter than its Path)
            os.dup2(nowhere.fileno(), 2)
        raise KeyboardInterrupt

    before = {}
    for name, usual in _STOPPING.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is usual:
            before[number] = signal.signal(number, stop)
    try:
        yield
    except BaseException:
        if not caught:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if caught else handler)
        os.dup2(stderr, 2)
        os.close(stderr)
        if caught:
            with suppress(OSError):  # the terminal may be gone
                print(f"fl-sim: {last_words()}", file=sys.stderr, flush=True)
            # Flower's server thread may be waiting for attacks that will never end, and would keep the process alive.
            os._exit(128 + caught[0])
