"""What a person sees while a run goes on: a live panel in a terminal, plain lines anywhere else."""

import math
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from time import monotonic
from types import TracebackType
from typing import Any, Self

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from attacks.workers import Counts
from experiments.experiment import Experiment
from experiments.leakage import OK, SERVER
from experiments.rounds import Round
from experiments.summary import NO_EVIDENCE, is_blank
from strategies.gossip import Gossip

SHOWN_ROUNDS = 12
"""How many of the latest rounds the panel shows."""


class Progress:
    """A run's progress, as a context manager around it; its methods may be called from any thread.

    Args:
        console: where to show it; the panel is for terminals, others get one line per event.
        rounds: how many rounds there will be.
        attacks: how many attacks there will be in all, 0 if none.
    """

    def __init__(self, console: Console, rounds: int, attacks: int) -> None:
        self._console = console
        self._planned_rounds, self._planned_attacks = rounds, attacks
        self._rounds: dict[int, Round] = {}
        self._psnr: dict[int, list[float]] = {}
        self._failed: dict[int, int] = {}
        self._attacks_before = 0
        self._counts: Callable[[], Counts] = Counts
        self._step = "starting Ray and the clients"
        self._started = monotonic()
        self._lock = Lock()
        self._spinner = Spinner("dots", style="cyan")
        self._live = (
            Live(get_renderable=self._panel, console=console, refresh_per_second=4) if console.is_terminal else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._step = "stopped" if error else "done"
        if self._live:
            self._live.stop()

    def watch(self, counts: Callable[[], Counts]) -> None:
        """From now on ask ``counts`` for the state of the attack queue."""
        self._counts = counts

    def go_on(self, rounds: Iterable[Round], attacks: int) -> None:
        """Begin with the rounds and the number of attacks of a run that was broken off."""
        self._rounds = {finished.round: finished for finished in rounds}
        self._attacks_before = attacks

    def step(self, text: str) -> None:
        """Show what the run does now."""
        self._step = text
        self._say(text)

    def round_done(self, finished: Round) -> None:
        """Show a round that was aggregated."""
        with self._lock:
            self._rounds[finished.round] = finished
        left = self._planned_rounds - len(self._rounds)
        self._step = f"training round {finished.round + 1}" if left else "waiting for the attacks"
        missing = f", missing {finished.clients_missing}" if finished.clients_missing else ""
        diverged = "" if math.isfinite(finished.train_loss) else "; the training has diverged"
        self._say(
            f"round {finished.round}/{self._planned_rounds}: training loss {finished.train_loss:.4f}, "
            f"{len(finished.clients_seen)} clients{missing}{diverged}"
        )

    def attacked(self, rows: list[dict[str, Any]]) -> None:
        """Show one attack's rows of the leakage table."""
        for row in rows:
            self._note(row)

    def inverted(self, line: str) -> None:
        """Show what a model inversion found."""
        self._say(f"  {line}")

    def _note(self, row: dict[str, Any]) -> None:
        with self._lock:
            if row["status"] == OK and not is_blank(row["flat_psnr"]):
                self._psnr.setdefault(row["round"], []).append(row["psnr"])
            elif row["status"] != OK:
                self._failed[row["round"]] = self._failed.get(row["round"], 0) + 1
        self._say(f"  {outcome(row)}")

    def _say(self, line: str) -> None:
        if self._live is None:
            self._console.print(f"[{monotonic() - self._started:5.0f} s] {line}", markup=False, highlight=False)

    def _panel(self) -> RenderableType:
        with self._lock:
            parts: list[RenderableType] = [self._bars()]
            if self._rounds or self._psnr:
                parts.append(self._table())
        return Group(*parts)

    def _bars(self) -> Table:
        counts = self._counts()
        grid = Table.grid(padding=(0, 2))
        grid.add_row(self._spinner, Text(self._step), Text(f"{monotonic() - self._started:.0f} s", style="dim"))
        grid.add_row("", *_bar("rounds", len(self._rounds), self._planned_rounds, ""))
        if self._planned_attacks:
            state = f"{counts.queued} queued, {counts.running} running"
            grid.add_row("", *_bar("attacks", self._attacks_before + counts.done, self._planned_attacks, state))
        return grid

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for heading in ("round", "loss", "clients", "attacked", "best", "median"):
            table.add_column(heading, justify="right")
        for number in sorted({*self._rounds, *self._psnr, *self._failed})[-SHOWN_ROUNDS:]:
            table.add_row(*self._cells(number))
        return table

    def _cells(self, number: int) -> list[str]:
        finished, psnr = self._rounds.get(number), self._psnr.get(number, [])
        failed = self._failed.get(number, 0)
        return [
            str(number),
            f"{finished.train_loss:.4f}" if finished else "",
            str(len(finished.clients_seen)) if finished else "",
            f"{len(psnr)}" + (f" [red]+{failed} failed[/red]" if failed else ""),
            f"{max(psnr):.1f} dB" if psnr else "",
            f"{pd.Series(psnr).median():.1f} dB" if psnr else "",
        ]


def outcome(row: Mapping[str, Any]) -> str:
    """One line for a row of the leakage table."""
    by = "" if row["observer"] == SERVER else f" seen by {row['observer']}"
    where = f"round {row['round']} client {row['client']}{by} image {row['image']} {row['attack']}"
    if row["status"] != OK:
        return f"{where}: {row['status']}"
    blank = f", {NO_EVIDENCE}: an original without content" if is_blank(row["flat_psnr"]) else ""
    return f"{where}: {row['psnr']:.1f} dB in {row['seconds']:.0f} s{blank}"


def run_progress(experiment: Experiment, console: Console) -> Progress:
    """A display for this experiment on ``console``."""
    federation, attack = experiment.settings.federation, experiment.settings.attack
    updates = federation.rounds * seen_per_round(experiment)
    return Progress(console, federation.rounds, updates * len(attack.names) if attack.in_run else 0)


def seen_per_round(experiment: Experiment) -> int:
    """How many observations a round brings if everybody answers."""
    federation, strategy = experiment.settings.federation, experiment.strategy
    if isinstance(strategy, Gossip):
        return sum(len(strategy.neighbours(peer)) for peer in set(federation.curious_peers))
    return 1 if experiment.defence.sum_only else federation.clients_per_round or federation.clients


def _bar(label: str, done: int, total: int, state: str) -> tuple[RenderableType, RenderableType]:
    line = Table.grid(padding=(0, 1))
    line.add_row(Text(f"{label:<8}"), ProgressBar(total=total, completed=done, width=30), Text(f"{done}/{total}"))
    return line, Text(state, style="dim")
