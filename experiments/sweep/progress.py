"""What a person sees while a sweep goes on: a line for every run that begins or ends, and in a terminal a bar below."""

from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from experiments.sweep.processes import Task


class SweepProgress:
    """The progress of so many ``runs``, of which some have ``ended`` before, as a context manager around them."""

    def __init__(self, console: Console, runs: int, ended: int) -> None:
        columns = (SpinnerColumn(), TextColumn("runs"), BarColumn(), MofNCompleteColumn())
        state = (TextColumn("{task.fields[state]}"), TextColumn("left"), TimeRemainingColumn())
        self._progress = Progress(
            *columns,
            *state,
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=float("inf"),
        )
        self._task = self._progress.add_task("runs", total=runs, completed=ended, state="")
        self._runs, self._ended, self._failed = runs, ended, 0
        self._running: dict[str, float] = {}
        self._started = monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begun(self, task: Task) -> None:
        """Show that a run has begun."""
        self._running[task.name] = monotonic()
        self._say(f"{task.name}: begun")

    def ended(self, task: Task, outcome: str, failed: bool) -> None:
        """Show what came of a run."""
        seconds = monotonic() - self._running.pop(task.name)
        self._ended, self._failed = self._ended + 1, self._failed + failed
        self._progress.advance(self._task)
        self._say(f"{self._ended}/{self._runs} {task.name}: {outcome} in {seconds:.0f} s")

    def _say(self, line: str) -> None:
        failed = f", {self._failed} failed" if self._failed else ""
        self._progress.update(self._task, state=f"{len(self._running)} running{failed}")
        before = f"[{monotonic() - self._started:5.0f} s] "
        self._progress.console.print(before + line, markup=False, highlight=False, soft_wrap=True)
