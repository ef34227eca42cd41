"""Looks whether Ray's own processes live, without which its library would wait for minutes, or for ever."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import psutil

WATCH_SECONDS = 1.0
"""Wait between two looks."""

_RAYS_OWN = ("raylet", "gcs_server")
"""The programs that Ray starts once on this machine, and cannot do without."""


@contextmanager
def watched_ray(lost: Callable[[str], object]) -> Iterator[None]:
    """Call ``lost`` with the name of a process of Ray's own that dies before the block is left, in a thread beside.

    The processes are those that this one has started; of a cluster that was there before nobody looks. Those that Ray
    ends itself, when it is shut down, are not lost.
    """
    left = Event()
    Thread(target=_watch, args=(left, lost), daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _watch(left: Event, lost: Callable[[str], object]) -> None:
    this, connected = psutil.Process(), False
    seen, shut_down = dict[psutil.Process, str](), set[psutil.Process]()
    while not left.wait(WATCH_SECONDS):
        seen |= {child: name for child in this.children() if (name := _name(child)) in _RAYS_OWN}
        gone = [name for process, name in seen.items() if _name(process) != name and process not in shut_down]
        before, connected = connected, _connected()
        if before and not connected:
            shut_down.update(seen)
        elif gone and not left.is_set():
            lost(gone[0])
            return


def _connected() -> bool:
    """Whether this process uses Ray; it does not from the moment on in which it begins to shut Ray down."""
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)  # not while ray is being imported
    return is_initialized is not None and bool(is_initialized())


def _name(process: psutil.Process) -> str:
    """The name of the program; empty if the process has ended."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else process.name()
    except psutil.NoSuchProcess:
        return ""
