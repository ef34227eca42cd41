"""What processes do in the tests; it imports nothing slow, as each process imports it."""

import os
import signal

import typer

from experiments.sweep.processes import Task


def work(task: Task) -> None:
    """What a task is called, it does."""
    print("at work")
    if task.name == "refused":
        print("fl-sim: client.lr = 3: too much")
        raise typer.Exit(2)
    if task.name == "broken":
        raise RuntimeError("a bug")
    if task.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    task.out.touch()
