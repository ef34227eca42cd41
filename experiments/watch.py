"""``fl-sim watch``: what a run shows, in another terminal or on another machine, from the files of its directory alone.

Nothing is written. Files that are half copied, or gone for a moment, count as they were before.
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from time import monotonic, sleep, time
from typing import Any

import pandas as pd
from rich.console import Console, RenderableType

from experiments.display import Display
from experiments.leakage import read_leakage
from experiments.progress import Standing, outcome, panel, round_line
from experiments.run_directory import RunDirectory
from experiments.tally import Tally
from fl_sim.config import SettingsError

ENDED, STOPPED = "ended", "stopped"
"""States of a run that does nothing any more."""
LOOK_EVERY = 1.0
"""Seconds between two looks."""
SILENT_AFTER = 30.0
"""Seconds without a sign of life from which on a run counts as stopped."""


class Watch(Display):
    """A run as its files tell it, as a context manager around the looks.

    Args:
        console: where to show it; where there is no terminal, a line for everything that is new.
        directory: the run's.
    """

    def __init__(self, console: Console, directory: RunDirectory) -> None:
        super().__init__(console, transient=False)
        self._directory = directory
        self._planned = directory.settings().federation.rounds
        self._tally = Tally()
        self._standing: Standing | None = None
        self._changed = monotonic()
        self._lock = Lock()

    def look(self, tell: bool = True) -> None:
        """Read the files once more; ``tell`` in lines what is new, where there is no terminal."""
        directory = self._directory
        rounds, leakage = _read(directory.rounds, pd.read_parquet), _read(directory.leakage_csv, read_leakage)
        there = directory.progress.is_file()
        standing = _read(directory.progress, Standing.load) if there else None
        with self._lock:
            trained = [] if rounds is None else rounds.to_dict("records")
            lines = [round_line(row, self._planned) for row in trained if self._tally.add_round(row)]
            attacked = self._tally.add_attacks([] if leakage is None else leakage.to_dict("records"))
            if standing != self._standing and (standing or not there):
                self._standing, self._changed = standing, monotonic()
        for line in [*lines, *(f"  {outcome(row)}" for row in attacked)] if tell else []:
            self.say(line)

    @property
    def ended(self) -> bool:
        """Whether all is done."""
        attacked = self._standing is not None and self._standing.work == "attack"
        return self._directory.ended and not attacked

    @property
    def standing(self) -> Standing:
        """Where it is at, as it says itself, or as its tables tell."""
        return self._standing or self._at_rest()

    def silent_here(self) -> float:
        """For how many seconds nothing has changed since the first look: clocks need not agree."""
        return monotonic() - self._changed

    def silent(self) -> float:
        """How many seconds ago the run gave its last sign of life, by the clock of this machine."""
        last = self._standing.at if self._standing else self._directory.config.stat().st_mtime
        return time() - last

    def state(self, silent: float) -> str:
        """What the run does, or that it does nothing any more, if it has been ``silent`` for so many seconds."""
        if self.ended:
            return ENDED
        if silent >= SILENT_AFTER:
            return STOPPED
        return self._standing.step if self._standing else "starting"

    def last_words(self, silent: float) -> str:
        """What to do about a run that does nothing any more; empty if it goes on."""
        state, path = self.state(silent), self._directory.path
        if state == ENDED:
            return f"{ENDED}; report: {self._directory.report}"
        again = shlex.join(["fl-sim", "run", "--resume", str(path)])
        if self._standing and self._standing.work == "attack":
            again = "the same fl-sim attack once more"
        return f"{STOPPED}; to go on: {again}" if state == STOPPED else ""

    def renderable(self) -> RenderableType:
        """What the run shows, and whether it goes on."""
        return self.panel(self.silent_here())

    def panel(self, silent: float) -> RenderableType:
        """The panel of a run that has been ``silent`` for so many seconds."""
        with self._lock:
            state = self.state(silent)
            return panel(self.standing, self._tally, state, live=state not in (ENDED, STOPPED))

    def _at_rest(self) -> Standing:
        """What can be said where there is no progress file: what the tables say."""
        tally = self._tally
        planned = tally.attacks if self.ended else 0
        return Standing("run", "", time(), 0.0, tally.rounds, self._planned, tally.attacks, planned, tally.failed)


def watch(path: Path, console: Console, once: bool = False) -> None:
    """Show the run in ``path`` until it has ended, or has stopped; ``once``: show how it is, and leave.

    Raises:
        SettingsError: if no run has begun in ``path``.
    """
    directory = RunDirectory(path)
    if not directory.config.is_file():
        raise SettingsError(
            f"{path}: no run has begun here: it has no config.toml, which a run writes after its checks, 10 to 20 "
            "seconds after its start"
        )
    display = Watch(console, directory)
    display.look(tell=not once)
    silent = display.silent() if once else 0.0
    if once:
        console.print(display.panel(silent))
    else:
        with display:
            while not display.last_words(silent):
                sleep(LOOK_EVERY)
                display.look()
                silent = display.silent_here()
    if words := display.last_words(silent):
        console.print(words, markup=False, highlight=False, soft_wrap=True)


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    """What ``read`` makes of the file; None if it is not there or not whole, whatever a library raises about that."""
    try:
        return read(path) if path.is_file() else None
    except Exception:
        return None
