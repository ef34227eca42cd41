"""What a person sees while a run goes on: a live panel in a terminal, plain lines anywhere else.

A file in the run directory tells the same to whoever watches from elsewhere (experiments/watch.py).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from time import time
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import TypeAdapter
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from attacks.workers import Counts
from experiments.display import Display
from experiments.experiment import Experiment
from experiments.leakage import OK, SERVER
from experiments.rounds import Round
from experiments.run_directory import RunDirectory
from experiments.summary import NO_EVIDENCE, is_blank
from experiments.tally import Row, Tally
from fl_sim.errors import printable
from fl_sim.files import write_atomically
from strategies.gossip import Gossip

SIGN_OF_LIFE = 2.0
"""Seconds between two signs of life in the progress file."""


@dataclass(frozen=True)
class Standing:
    """Where a run, or the attacks on one that has ended, is at ``at``, in seconds since 1970.

    ``work``: the command that does it. ``step``: what it does now. ``seconds``: since it began or went on. Counts of
    attacks include those of runs before that were broken off; planned ones are 0 if there are none. ``left``: about how
    many seconds it still takes, None if nobody knows.
    """

    work: Literal["run", "attack"]
    step: str
    at: float
    seconds: float
    rounds: int
    planned_rounds: int
    attacks: int
    planned_attacks: int
    failed: int = 0
    queued: int = 0
    running: int = 0
    left: float | None = None

    def in_words(self) -> str:
        """In one line."""
        parts = [self.step, f"round {self.rounds}/{self.planned_rounds}"] if self.planned_rounds else [self.step]
        if self.planned_attacks:
            parts.append(f"attacks: {self.attacks}/{self.planned_attacks}, {self.running} running")
        if self.left:
            parts.append(f"about {duration(self.left)} left")
        return ", ".join(parts)

    def save(self, path: Path) -> None:
        """Replace the file."""
        content = _STANDING.dump_json(self)
        write_atomically(path, lambda file: file.write_bytes(content))

    @classmethod
    def load(cls, path: Path) -> "Standing":
        """Read the file; ValueError if it is none, OSError if it cannot be read."""
        return _STANDING.validate_json(path.read_bytes())


_STANDING = TypeAdapter(Standing)


class Progress(Display):
    """The progress of a run, or of attacks on its captures; its methods may be called from any thread.

    Args:
        console: where to show it; the panel is for terminals, others get one line per event.
        rounds: how many rounds there will be.
        attacks: how many attacks there will be in all, 0 if none.
        file: is kept up to date for those who watch from elsewhere, and removed at the end; None: nobody can.
        work: the command that is shown.
    """

    def __init__(
        self,
        console: Console,
        rounds: int,
        attacks: int,
        file: Path | None = None,
        work: Literal["run", "attack"] = "run",
    ) -> None:
        super().__init__(console, transient=False)
        self._planned_rounds, self._planned_attacks = rounds, attacks
        self._file, self._work = file, work
        self._tally = Tally()
        self._rounds_before = self._attacks_before = self._ended = self._failed = 0
        self._attacking_since = math.inf
        self._counts: Callable[[], Counts] = Counts
        self._step = "starting Ray and the clients" if work == "run" else "attacking"
        self._lock = Lock()
        self._over = Event()
        self._writer = Thread(target=self._keep_writing, daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._writer.start()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._step = "stopped" if error else "done"
        super().__exit__(kind, error, traceback)
        self._over.set()
        self._writer.join()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def watch(self, counts: Callable[[], Counts]) -> None:
        """From now on ask ``counts`` for the state of the attack queue."""
        self._counts = counts

    def go_on(self, rounds: Iterable[Row], leakage: Iterable[Row]) -> None:
        """Begin with the rows that a run that was broken off has in its tables."""
        for row in rounds:
            self._tally.add_round(row)
        self._tally.add_attacks(leakage)
        self._rounds_before, self._attacks_before = self._tally.rounds, self._tally.attacks
        self._ended, self._failed = self._tally.attacks, self._tally.failed
        if self._work == "run" and self._tally.rounds >= self._planned_rounds:
            self._step = "waiting for the attacks"

    def step(self, text: str) -> None:
        """Show what the run does now."""
        self._step = text
        self.say(text)

    def round_done(self, finished: Round) -> None:
        """Show a round that was aggregated."""
        with self._lock:
            self._tally.add_round(finished.row())
        left = self._planned_rounds - self._tally.rounds
        self._step = f"training round {finished.round + 1}" if left else "waiting for the attacks"
        self.say(round_line(finished.row(), self._planned_rounds))

    def attacked(self, rows: list[dict[str, Any]]) -> None:
        """Show one attack's rows of the leakage table."""
        with self._lock:
            self._tally.add_attacks(rows)
            self._note(failed=rows[0]["status"] != OK)
        for row in rows:
            self.say(f"  {outcome(row)}")

    def attacked_elsewhere(self, line: str, failed: bool) -> None:
        """Show what came of an attack that no leakage table tells of."""
        with self._lock:
            self._note(failed)
        self.say(f"{self._ended}/{self._planned_attacks} {line}", in_terminal=True)

    def inverted(self, line: str) -> None:
        """Show what a model inversion found."""
        self.say(f"  {line}")

    def renderable(self) -> RenderableType:
        """Bars for rounds and attacks, and a table of the latest rounds."""
        with self._lock:
            return panel(self._standing(), self._tally, self._step)

    def _note(self, failed: bool) -> None:
        self._attacking_since = min(self._attacking_since, self.seconds)
        self._ended += 1
        self._failed += failed

    def _standing(self) -> Standing:
        counts = self._counts()
        if counts.running:
            self._attacking_since = min(self._attacking_since, self.seconds)
        return Standing(
            work=self._work,
            step=self._step,
            at=time(),
            seconds=self.seconds,
            rounds=self._tally.rounds,
            planned_rounds=self._planned_rounds,
            attacks=self._ended,
            planned_attacks=self._planned_attacks,
            failed=self._failed,
            queued=counts.queued,
            running=counts.running,
            left=self._left(),
        )

    def _left(self) -> float | None:
        """Seconds for the rounds and the attacks that are left, at the speed so far; they go on side by side."""
        rounds, attacks = self._tally.rounds, self._ended
        parts = [
            time_left(rounds - self._rounds_before, self._planned_rounds - rounds, self.seconds),
            time_left(
                attacks - self._attacks_before, self._planned_attacks - attacks, self.seconds - self._attacking_since
            ),
        ]
        known = [part for part in parts if part is not None]
        return max(known) if len(known) == len(parts) else None

    def _keep_writing(self) -> None:
        while not self._over.wait(SIGN_OF_LIFE):
            self._write()
            if self.is_silent:
                with self._lock:
                    standing = self._standing()
                self.say(standing.in_words())

    def _write(self) -> None:
        """Write the progress file; a disk that is full for a while is no reason to end a run."""
        if self._file is not None:
            with self._lock:
                standing = self._standing()
            with suppress(OSError):
                standing.save(self._file)


def time_left(done: int, left: int, seconds: float) -> float | None:
    """Seconds for what is ``left`` if ``done`` took ``seconds``; None if nobody knows.

    >>> time_left(2, 3, 10.0)
    15.0
    """
    if left <= 0:
        return 0.0
    return seconds * left / done if done else None


def panel(standing: Standing, tally: Tally, headline: str, live: bool = True) -> RenderableType:
    """Bars for rounds and attacks below a ``headline``, and a table of the latest rounds; ``live``: it turns."""
    grid = Table.grid(padding=(0, 2))
    since = duration(standing.seconds) if standing.seconds else ""
    left = f", about {duration(standing.left)} left" if live and standing.left else ""
    grid.add_row(_SPINNER if live else "", Text(printable(headline)), Text(f"{since}{left}", style="dim"))
    if standing.planned_rounds:
        grid.add_row("", *_bar("rounds", standing.rounds, standing.planned_rounds, ""))
    if standing.planned_attacks:
        failed = f", {standing.failed} failed" if standing.failed else ""
        begun = f"{standing.queued} queued, {standing.running} running"
        state = (begun if live else f"{standing.queued + standing.running} not ended") + failed
        grid.add_row("", *_bar("attacks", standing.attacks, standing.planned_attacks, state))
    return Group(grid, tally.table()) if tally.rounds or tally.attacks else grid


_SPINNER = Spinner("dots", style="cyan")


def _bar(label: str, done: int, total: int, state: str) -> tuple[RenderableType, RenderableType]:
    line = Table.grid(padding=(0, 1))
    line.add_row(Text(f"{label:<8}"), ProgressBar(total=total, completed=done, width=30), Text(f"{done}/{total}"))
    return line, Text(state, style="dim")


def duration(seconds: float) -> str:
    """Seconds, from 100 on minutes, from 100 of those on hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def round_line(row: Row, planned: int) -> str:
    """One line for a row of the rounds table."""
    missing = f", missing {[*map(int, row['clients_missing'])]}" if len(row["clients_missing"]) else ""
    diverged = "" if math.isfinite(row["train_loss"]) else "; the training has diverged"
    return (
        f"round {row['round']}/{planned}: training loss {row['train_loss']:.4f}, "
        f"{len(row['clients_seen'])} clients{missing}{diverged}"
    )


def outcome(row: Mapping[str, Any]) -> str:
    """One line for a row of the leakage table."""
    by = "" if row["observer"] == SERVER else f" seen by {row['observer']}"
    where = f"round {row['round']} client {row['client']}{by} image {row['image']} {row['attack']}"
    if row["status"] != OK:
        return f"{where}: {row['status']}"
    blank = f", {NO_EVIDENCE}: an original without content" if is_blank(row["flat_psnr"]) else ""
    return f"{where}: {row['psnr']:.1f} dB in {row['seconds']:.0f} s{blank}"


def run_progress(experiment: Experiment, directory: RunDirectory, console: Console) -> Progress:
    """A display for this experiment on ``console``, and for those who watch ``directory``."""
    federation, attack = experiment.settings.federation, experiment.settings.attack
    attacks = most_attacked(experiment) * len(attack.names) if attack.in_run else 0
    return Progress(console, federation.rounds, attacks, directory.progress)


def most_attacked(experiment: Experiment) -> int:
    """How many updates of the run are attacked if everybody answers, at most: who takes part is drawn."""
    federation, attack, strategy = experiment.settings.federation, experiment.settings.attack, experiment.strategy
    rounds = sum(attack.due(number, federation.rounds) for number in range(1, federation.rounds + 1))
    if isinstance(strategy, Gossip):
        seen = [peer for curious in set(federation.curious_peers) for peer in strategy.neighbours(curious)]
        return rounds * sum(map(attack.chooses, seen))
    if experiment.defence.sum_only:
        return rounds
    chosen = sum(map(attack.chooses, range(federation.clients)))
    return rounds * min(chosen, federation.clients_per_round or federation.clients)
