"""What a person sees while one attack searches: a bar in a terminal, a line now and then anywhere else."""

from datetime import timedelta
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

LINE_EVERY = 60.0
"""Seconds between two lines where there is no terminal."""
SPEED_PERIOD = 300.0
"""Seconds over which the speed is measured that the time left is estimated from."""


class SearchProgress:
    """An attack's progress, as a context manager around it; called after every evaluation (attacks/trace.py, Watch).

    Args:
        console: where to show it.
        title: what is attacked.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            get_time=lambda: monotonic(),
            speed_estimate_period=SPEED_PERIOD,
        )
        self._task = self._progress.add_task(title, total=None, state="")
        self._started = self._said = monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, spent: int, planned: int, value: float) -> None:
        """Show that so many evaluations of ``planned`` (0 if unknown) are done; the last had that matching loss."""
        self._progress.update(self._task, completed=spent, total=max(planned, spent) if planned else None)
        state = self._state(spent, planned, value)
        self._progress.update(self._task, state=state)
        if not self._console.is_terminal and monotonic() - self._said >= LINE_EVERY:
            self._said = monotonic()
            line = f"[{self._said - self._started:5.0f} s] {state}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _state(self, spent: int, planned: int, value: float) -> str:
        of = f" of at most {planned}" if planned else ""
        left = self._progress.tasks[0].time_remaining
        remaining = f", at most {timedelta(seconds=int(left))} left" if planned and left is not None else ""
        return f"{spent}{of} evaluations, matching loss {value:.3g}{remaining}"
