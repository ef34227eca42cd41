"""``fl-sim watch``: what a run shows, in another terminal or on another machine, from the files of its directory alone.

Nothing is written. Files that are half copied, or gone for a moment, count as they were before.
"""

from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

import pandas as pd
from rich.console import Console, RenderableType

from experiments.display import Display
from experiments.leakage import read_leakage
from experiments.progress import Standing, outcome, panel, round_line
from experiments.run_directory import RunDirectory
from experiments.tally import Tally

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
        self.look()

    def look(self) -> None:
        """Read the files once more."""
        directory = self._directory
        rounds, leakage = _read(directory.rounds, pd.read_parquet), _read(directory.leakage_csv, read_leakage)
        for row in [] if rounds is None else rounds.to_dict("records"):
            if self._tally.add_round(row):
                self.say(round_line(row, self._planned))
        for row in self._tally.add_attacks([] if leakage is None else leakage.to_dict("records")):
            self.say(f"  {outcome(row)}")
        there = directory.progress.exists()
        standing = _read(directory.progress, Standing.load) if there else None
        if standing != self._standing and (standing or not there):
            self._standing, self._changed = standing, monotonic()

    @property
    def ended(self) -> bool:
        """Whether all is done."""
        attacked = self._standing is not None and self._standing.work == "attack"
        return self._directory.ended and not attacked

    def silent_here(self) -> float:
        """For how many seconds nothing has changed since the first look: clocks need not agree."""
        return monotonic() - self._changed

    def silent(self) -> float:
        """How many seconds ago the run gave its last sign of life, by the clock of this machine."""
        last = self._standing.at if self._standing else self._directory.config.stat().st_mtime
        return time() - last

    def headline(self, silent: float) -> str:
        """In which state the run is, if it has been ``silent`` for so many seconds."""
        path, standing = self._directory.path, self._standing
        if self.ended:
            return f"ended; report: {self._directory.report}"
        if silent < SILENT_AFTER:
            return standing.step if standing else "starting"
        if standing and standing.work == "attack":
            return "stopped; to go on: the same fl-sim attack once more"
        return f"stopped; to go on: fl-sim run --resume {path}"

    def renderable(self) -> RenderableType:
        """What the run shows, and whether it goes on."""
        return self.panel(self.silent_here())

    def panel(self, silent: float) -> RenderableType:
        """The panel of a run that has been ``silent`` for so many seconds."""
        standing = self._standing or self._at_rest()
        goes_on = not self.ended and silent < SILENT_AFTER
        return panel(standing, self._tally, self.headline(silent), live=goes_on)

    def _at_rest(self) -> Standing:
        """What can be said where there is no progress file: what the tables say."""
        tally = self._tally
        counts = {"rounds": tally.rounds, "attacks": tally.attacks, "planned_attacks": tally.attacks}
        return Standing("run", "", time(), 0.0, planned_rounds=self._planned, failed=tally.failed, **counts)


def watch(path: Path, console: Console, once: bool = False) -> None:
    """Show the run in ``path`` until it has ended, or has stopped; ``once``: show how it is, and leave.

    Raises:
        SettingsError: if ``path`` is no run directory.
    """
    display = Watch(console, RunDirectory.open(path))
    if once:
        console.print(display.panel(display.silent()))
        return
    with display:
        while not display.ended and display.silent_here() < SILENT_AFTER:
            sleep(LOOK_EVERY)
            display.look()
    display.say(display.headline(display.silent_here()))


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    """What ``read`` makes of the file; None if it is not there or not whole, whatever a library raises about that."""
    try:
        return read(path)
    except Exception:
        return None
