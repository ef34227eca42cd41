"""Processes that tests start, and everything that these start in turn."""

from collections.abc import Iterable
from contextlib import suppress

import psutil


def with_descendants(pid: int) -> list[psutil.Process]:
    """The process and all below it; none if it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL, which nobody can handle; returns when they are gone."""
    processes = list(processes)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
