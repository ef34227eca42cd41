"""What a person sees while many captures are attacked: a line per attack, and in a terminal a bar below them."""

from collections.abc import Iterable
from threading import Lock
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


class AttacksProgress:
    """The progress of so many ``attacks``, as a context manager around them; may be called from any thread."""

    def __init__(self, console: Console, attacks: int) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("attacks"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("attacks", total=attacks)
        self._attacks, self._ended = attacks, 0
        self._started = monotonic()
        self._lock = Lock()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def ended(self, lines: Iterable[str]) -> None:
        """Show what came of one attack."""
        with self._lock:
            self._ended += 1
            before = f"[{monotonic() - self._started:5.0f} s] {self._ended}/{self._attacks} "
            for line in lines:
                self._progress.console.print(before + line, markup=False, highlight=False, soft_wrap=True)
            self._progress.advance(self._task)
