"""What a person sees while something goes on: something live in a terminal, plain lines anywhere else."""

from abc import ABC, abstractmethod
from datetime import timedelta
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from fl_sim.errors import printable

LINE_EVERY = 60.0
"""Seconds after which long work says a line where there is no terminal."""
LONGEST = timedelta(days=1000)
"""Times left that are longer are not shown."""
SPEED_PERIOD = 300.0
"""Seconds over which a Bar measures the speed that it estimates the time left from."""


class Display(ABC):
    """Shows ``renderable()`` in a terminal, as a context manager around the work.

    Args:
        console: where to show it.
        transient: whether it goes away at the end.
    """

    def __init__(self, console: Console, transient: bool) -> None:
        self._console, self._transient = console, transient
        self._started = monotonic()
        self._said = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self.renderable, console=self._console, refresh_per_second=4, transient=self._transient
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    @abstractmethod
    def renderable(self) -> RenderableType:
        """What a terminal shows now; called from a thread of its own."""

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return monotonic() - self._started

    @property
    def is_silent(self) -> bool:
        """Whether somebody without a terminal has seen no line for long."""
        return not self._console.is_terminal and self.seconds - self._said >= LINE_EVERY

    def say(self, line: str, in_terminal: bool = False) -> None:
        """Print a line where there is no terminal; ``in_terminal``: there as well, above what is live."""
        self._said = self.seconds
        if in_terminal or not self._console.is_terminal:
            self._console.print(
                f"[{self.seconds:5.0f} s] {printable(line)}", markup=False, highlight=False, soft_wrap=True
            )


class Bar(Display):
    """A bar that goes away, or a line now and then; called after every step of the work.

    Args:
        console: where to show it.
        title: what is done.
        steps: what the steps are called, such as ``evaluations``.
        figure: what the figure is called that each step brings.
        may_end_early: whether the steps planned are the most that there can be.
    """

    def __init__(self, console: Console, title: str, steps: str, figure: str, may_end_early: bool = False) -> None:
        super().__init__(console, transient=True)
        self._steps, self._figure, self._at_most = steps, figure, "at most " if may_end_early else ""
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=console,
            get_time=lambda: monotonic(),
            speed_estimate_period=SPEED_PERIOD,
        )
        self._task = self._bar.add_task(title, total=None, state="")

    def renderable(self) -> RenderableType:
        """The bar."""
        return self._bar.get_renderable()

    def __call__(self, done: int, planned: int, value: float) -> None:
        """Show that so many steps of ``planned`` (0 if unknown) are done; the last brought that figure."""
        self._bar.update(self._task, completed=done, total=max(planned, done) if planned else None)
        state = self._state(done, planned, value)
        self._bar.update(self._task, state=state)
        if self.is_silent:
            self.say(state)

    def _state(self, done: int, planned: int, value: float) -> str:
        of = f" of {self._at_most}{planned}" if planned else ""
        left = self._bar.tasks[0].time_remaining
        known = planned and left is not None and left < LONGEST.total_seconds()
        remaining = f", {self._at_most}{timedelta(seconds=int(left))} left" if known and left is not None else ""
        return f"{done}{of} {self._steps}, {self._figure} {value:.3g}{remaining}"
