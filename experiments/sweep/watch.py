"""``fl-sim watch`` of a sweep: where each of its runs is, from the files alone."""

import shlex
from pathlib import Path
from time import sleep

import pandas as pd
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from experiments.display import Display
from experiments.sweep.directory import SweepDirectory
from experiments.sweep.table import LEFT
from experiments.watch import LOOK_EVERY, STOPPED, Watch
from fl_sim.config import SettingsError
from fl_sim.errors import one_line, printable

SILENT_AFTER = 120.0
"""Seconds without a sign of life of any run from which on a sweep counts as stopped: between two runs is a start."""
WAITING = "waiting"
"""The state of a run that has not begun."""


class SweepWatch(Display):
    """A sweep as its files tell it, as a context manager around the looks; needs its table, which is there first."""

    def __init__(self, console: Console, directory: SweepDirectory) -> None:
        super().__init__(console, transient=False)
        self._directory = directory
        self._table = _read_table(directory.csv)
        self._runs: dict[str, Watch] = {}

    def look(self) -> None:
        """Read the files once more, and tell in lines which runs have ended, where there is no terminal."""
        before, self._table = self._table, _read_table(self._directory.csv)
        for name in self._table["run"].unique():
            if name not in self._runs and Path(name).name == name and self._directory.run(name).config.is_file():
                self._runs[name] = Watch(self._console, self._directory.run(name))
            if name in self._runs:
                self._runs[name].look(tell=False)
        news = self._table[["run", "status"]].merge(before[["run", "status"]], how="left", indicator=True)
        for run, status in news.loc[news["_merge"] == "left_only", ["run", "status"]].drop_duplicates().to_numpy():
            self.say(f"{run}: {status}")

    def silent(self, by_clock: bool) -> float:
        """For how many seconds no run has given a sign of life: by this machine's clock, or since the first look."""
        runs = self._runs.values()
        return min((watch.silent() if by_clock else watch.silent_here() for watch in runs), default=self.seconds)

    def last_words(self, silent: float) -> str:
        """How it has ended, or what to do about a sweep that does nothing any more; empty if it goes on."""
        if not self._table["status"].eq(LEFT).any():
            return f"ended; report: {self._directory.report}"
        again = shlex.join(["fl-sim", "sweep", str(self._directory.file), "--out", str(self._directory.path)])
        return f"{STOPPED}; to go on: {again}" if silent >= SILENT_AFTER else ""

    def renderable(self) -> RenderableType:
        """A row for every run and attack."""
        return self.panel(by_clock=False)

    def panel(self, by_clock: bool) -> Table:
        """The same; whether a run has stopped is judged by this machine's clock, or since the first look."""
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for heading in ("run", "state", "rounds", "attacks", "attack", "median"):
            table.add_column(heading, justify="left" if heading in ("run", "state", "attack") else "right")
        for row in self._table.to_dict("records"):
            watch, median = self._runs.get(row["run"]), row["median_psnr"]
            state, counts = row["status"], ("", "")
            if watch is not None:
                standing = watch.standing
                counts = (
                    f"{standing.rounds}/{standing.planned_rounds}",
                    f"{standing.attacks}/{standing.planned_attacks}" if standing.planned_attacks else "",
                )
            if state == LEFT:
                silent = 0.0 if watch is None else watch.silent() if by_clock else watch.silent_here()
                state = WAITING if watch is None else watch.state(silent)
            found = "" if pd.isna(median) else f"{median:.1f} dB"
            attack = "" if pd.isna(row["attack"]) else row["attack"]
            table.add_row(*(Text(printable(text)) for text in (row["run"], state, *counts, attack, found)))
        return table


def _read_table(path: Path) -> pd.DataFrame:
    """What a sweep's table says of its runs; SettingsError if it is damaged."""
    try:
        table = pd.read_csv(path, dtype={"run": "str", "status": "str", "attack": "str"})
        table = table[["run", "status", "attack", "median_psnr"]].astype({"median_psnr": "float64"})
        return table.fillna({"run": "", "status": ""})
    except (ValueError, LookupError) as error:  # pandas' own are ValueErrors
        raise SettingsError(f"{path}: not a sweep's table: {one_line(str(error))}") from error


def watch_sweep(directory: SweepDirectory, console: Console, once: bool) -> None:
    """Show a sweep until it has ended, or has stopped; ``once``: show how it is, and leave."""
    display = SweepWatch(console, directory)
    display.look()
    if once:
        console.print(display.panel(by_clock=True))
        words = display.last_words(display.silent(by_clock=True))
    else:
        with display:
            while not (words := display.last_words(display.silent(by_clock=False))):
                sleep(LOOK_EVERY)
                display.look()
    if words:
        console.print(words, markup=False, highlight=False, soft_wrap=True)
