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

import torch
import typer

from experiments.commands import console, one_line_errors, what_is_left
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from experiments.stopping import follow_parent
from fl_sim.errors import one_line, printable


@dataclass(frozen=True)
class Task:
    """A run to begin, or to go on with: its name, the file of its settings, its directory, and where it prints."""

    name: str
    settings: Path
    out: Path
    log: Path


def side_by_side(tasks: Sequence[Task], jobs: int, begun: Callable[[Task], None]) -> Iterator[tuple[Task, str | None]]:
    """Each task as it ends, with the reason if its run failed; ``jobs`` at a time; ``begun`` is told of each first."""
    context = multiprocessing.get_context("spawn")
    waiting = list(tasks)
    running: dict[int, tuple[Task, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                started = context.Process(target=_run, args=(task,), name=task.name)
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


def carry_out(task: Task) -> None:
    """Begin the run, or go on with it; UserError or FederationError if it fails."""
    from experiments.launch import launch, resume

    if RunDirectory(task.out).config.is_file():
        resume(task.out, console)
    else:
        launch(str(task.settings), (), task.out, console)


def jobs_that_fit(settings: Sequence[ExperimentSettings]) -> int:
    """How many such runs keep the processors of this machine busy: one where they share a GPU.

    A run counts with the clients that train at once, or with its attack workers if these are more: attacks lag behind
    the rounds and go on after them.
    """
    if torch.cuda.is_available():
        return 1
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // max(_busy(each, cpus) for each in settings))


def _busy(settings: ExperimentSettings, cpus: int) -> int:
    federation, attack = settings.federation, settings.attack
    clients = min(federation.clients_per_round or federation.clients, max(1, int(cpus / federation.client_cpus)))
    return max(clients, attack.workers * attack.threads if attack.in_run else 0)


def _run(task: Task) -> None:
    follow_parent()
    task.log.parent.mkdir(exist_ok=True)
    with task.log.open("ab", buffering=0) as log:
        for output in (1, 2):
            os.dup2(log.fileno(), output)
    try:
        with one_line_errors(lambda: what_is_left(task.out), with_ray=True):
            carry_out(task)
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
