"""What a run has come to so far, round by round: the table that a live display shows."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from rich.table import Table

from experiments.leakage import OK
from experiments.summary import is_blank

SHOWN_ROUNDS = 12
"""How many of the latest rounds the table shows."""

Row = Mapping[Any, Any]


class Tally:
    """Rounds and attacks; what is added again takes the place of what was there."""

    def __init__(self) -> None:
        self._rounds: dict[int, Row] = {}
        self._attacks: dict[tuple[Any, ...], list[Row]] = {}

    @property
    def rounds(self) -> int:
        """How many rounds have ended."""
        return len(self._rounds)

    @property
    def attacks(self) -> int:
        """How many attacks have ended, those that failed among them."""
        return len(self._attacks)

    @property
    def failed(self) -> int:
        """How many attacks have failed."""
        return sum(rows[0]["status"] != OK for rows in self._attacks.values())

    def add_round(self, row: Row) -> bool:
        """Add a row of the rounds table; whether it is new."""
        new = row["round"] not in self._rounds
        self._rounds[row["round"]] = row
        return new

    def add_attacks(self, rows: Iterable[Row]) -> list[Row]:
        """Add all rows that the leakage table has of some attacks; returns those of attacks that are new."""
        grouped: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            grouped.setdefault((row["round"], row["client"], row["observer"], row["attack"]), []).append(row)
        new = [row for attack, own in grouped.items() if attack not in self._attacks for row in own]
        self._attacks |= grouped
        return new

    def table(self) -> Table:
        """The latest rounds, a row each."""
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for heading in ("round", "loss", "clients", "attacked", "best", "median"):
            table.add_column(heading, justify="right")
        rows: dict[int, list[Row]] = {}
        for attack in list(self._attacks.values()):
            rows.setdefault(attack[0]["round"], []).extend(attack)
        for number in sorted({*self._rounds, *rows})[-SHOWN_ROUNDS:]:
            table.add_row(str(number), *_training(self._rounds.get(number)), *_leakage(rows.get(number, [])))
        return table


def _training(row: Row | None) -> tuple[str, str]:
    return ("", "") if row is None else (f"{row['train_loss']:.4f}", str(len(row["clients_seen"])))


def _leakage(rows: list[Row]) -> tuple[str, str, str]:
    """Images attacked, best and median PSNR; originals without content are no evidence."""
    psnr = [row["psnr"] for row in rows if row["status"] == OK and not is_blank(row["flat_psnr"])]
    failed = sum(row["status"] != OK for row in rows)
    attacked = f"{len(psnr)}" + (f" [red]+{failed} failed[/red]" if failed else "")
    return attacked, *((f"{max(psnr):.1f} dB", f"{pd.Series(psnr).median():.1f} dB") if psnr else ("", ""))
