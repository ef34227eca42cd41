"""What is called while a run goes on: an experiment tracker, TensorBoard, a log of one's own."""

from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any

from experiments.loaded_run import Images
from fl_sim.errors import explain

Row = dict[str, Any]


class Callback:
    """Override what is needed; the methods of this class do nothing.

    One call comes at a time, from whatever thread; attacks do not wait for it, but their results do. A callback that
    raises an exception, or would exit, is not called again, and the run goes on. Rows are copies: what a callback does
    to them changes no table.
    """

    def on_round(self, row: Row) -> None:
        """A round was aggregated; ``row`` is its row of the rounds table, without the medians of its attacks."""

    def on_attack(self, rows: list[Row], images: Images) -> None:
        """An attack on one update has ended.

        ``rows`` are its rows of the leakage table. ``images`` has the originals and, unless the attack failed, its
        reconstruction.
        """

    def on_round_attacked(self, rows: list[Row]) -> None:
        """The last attack on what was seen in a round has ended; all rows that the leakage table has of the round."""


class Callbacks:
    """Several of them as one; ``say`` takes the line on one that has failed."""

    def __init__(self, callbacks: Iterable[Callback], say: Callable[[str], None]) -> None:
        self._callbacks = list(callbacks)
        self._say = say
        self._lock = Lock()

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def tell(self, event: Callable[[Callback], None]) -> None:
        """Let ``event`` call each of them."""
        with self._lock:
            for callback in list(self._callbacks):
                try:
                    event(callback)
                except (Exception, SystemExit) as error:  # whatever somebody's code raises: the run has results to keep
                    self._callbacks.remove(callback)
                    self._say(f"{type(callback).__name__} failed and is not called again: {explain(error)}")
