"""The runs of a sweep side by side, each in a process of its own.

A run starts a Ray of its own and holds it to its end, and one process cannot be in two Rays: so a process a run, which
does what ``fl-sim run`` does. It may fail or be killed without harm to the others.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import typer

from experiments.commands import console, one_line_errors, what_is_left
from experiments.stopping import follow_parent
from fl_sim.errors import one_line, printable


@dataclass(frozen=True)
class Task:
    """A run to begin, or to go on with: its name, the file of its settings, its directory, and where it prints."""

    name: str
    settings: Path
    out: Path
    log: Path


def side_by_side(
    tasks: Sequence[Task], jobs: int, begun: Callable[[Task], None], work: Callable[[Task], None]
) -> Iterator[tuple[Task, str | None]]:
    """Do ``work`` on every task, ``jobs`` at a time; each task as it ends, with the reason if it failed.

    ``begun`` is told of each first.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(tasks)
    running: dict[int, tuple[Task, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                started = context.Process(target=_work, args=(work, task), name=task.name)
                started.start()
                running[started.sentinel] = task, started
                begun(task)
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                task, process = running.pop(sentinel)
                process.join()
                yield task, _failure(task, process.exitcode)
    finally:
        for _, process in running.values():
            process.kill()


def fl_sim_run(task: Task) -> None:
    """What ``fl-sim run`` does, or ``fl-sim run --resume``; what is wrong is one line and an exit code."""
    with one_line_errors(lambda: what_is_left(task.out), with_ray=True):
        carry_out(task)


def carry_out(task: Task) -> None:
    """Begin the run, or go on with it; UserError or FederationError if it fails."""
    # Imported by the process of the run alone: it takes seconds.
    from experiments.launch import launch, resume
    from experiments.run_directory import RunDirectory

    if RunDirectory(task.out).config.is_file():
        resume(task.out, console)
    else:
        launch(str(task.settings), (), task.out, console)


def _work(work: Callable[[Task], None], task: Task) -> None:
    follow_parent()
    task.log.parent.mkdir(exist_ok=True)
    with task.log.open("ab", buffering=0) as log:
        for output in (1, 2):
            os.dup2(log.fileno(), output)
    try:
        work(task)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


def _failure(task: Task, code: int | None) -> str | None:
    """Why the run failed, None if it did not: its last words, which are in its log."""
    if code == 0:
        return None
    if code is not None and code < 0:
        return f"its process was ended by signal {-code}"
    lines = [line for line in task.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return printable(one_line(lines[-1].removeprefix("fl-sim: "))) if lines else f"exit code {code}"
