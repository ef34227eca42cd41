"""The rows of the benchmark in figures, one summary per cell."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.bench.benchmark import Row, revisions
from experiments.bench.cases import Case
from experiments.leakage import OK
from experiments.summary import RECOGNISABLE_DB


@dataclass(frozen=True)
class Summary:
    """One cell in figures.

    PSNRs in dB over all images of all victims, an image that an attack failed on counting as 0 dB. Timesteps are None
    where the attack was given them, labels also where there are none. Evaluations and seconds are medians over the
    victims that it finished; those up to 40 dB over all victims, None if the median victim never got there.
    """

    cell: dict[str, Any]
    victims: int
    images: int
    parameters: int
    median_psnr: float
    lower_quartile: float
    upper_quartile: float
    least_psnr: float
    share_recognisable: float
    timesteps: dict[str, int] | None
    labels: dict[str, int] | None
    evaluations: float | None
    seconds: float | None
    evaluations_to_40_db: float | None
    seconds_to_40_db: float | None
    failures: dict[str, int]
    revision: str

    @property
    def case(self) -> Case:
        """The cell without its contender."""
        return Case(**{key: value for key, value in self.cell.items() if key in Case.model_fields})

    @property
    def attack(self) -> str:
        """The contender's name."""
        return str(self.cell["attack"])


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """One summary per cell, in the order in which the cells first appear."""
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault(json.dumps(row["cell"]), []).append(row)
    return [_summarise(group) for group in cells.values()]


def pool_timesteps(rows: Iterable[Row]) -> list[Row]:
    """The rows of cells that differ in their range of timesteps alone, as of one cell with the range that spans them.

    Rows of a cell that no other is like are left out.
    """
    alike: dict[str, list[Row]] = {}
    for row in rows:
        alike.setdefault(json.dumps(row["cell"] | {"timesteps": None}), []).append(row)
    pooled = []
    for group in alike.values():
        ranges = {tuple(row["cell"]["timesteps"]) for row in group}
        if len(ranges) > 1:
            spanning = [min(first for first, _ in ranges), max(last for _, last in ranges)]
            pooled += [row | {"cell": row["cell"] | {"timesteps": spanning}} for row in group]
    return pooled


def _summarise(rows: Sequence[Row]) -> Summary:
    psnr = np.concatenate([row["psnr"] for row in rows])
    least, lower, median, upper = np.quantile(psnr, [0, 0.25, 0.5, 0.75]).tolist()
    return Summary(
        cell=rows[0]["cell"],
        victims=len(rows),
        images=len(psnr),
        parameters=rows[0]["parameters"],
        median_psnr=median,
        lower_quartile=lower,
        upper_quartile=upper,
        least_psnr=least,
        share_recognisable=float((psnr >= RECOGNISABLE_DB).mean()),
        timesteps=count_verdicts(rows),
        labels=count_verdicts(rows, "labels_verdict"),
        evaluations=_median_of_finished(rows, "evaluations"),
        seconds=_median_of_finished(rows, "seconds"),
        evaluations_to_40_db=_median_of_all(rows, "evaluations_to_40_db"),
        seconds_to_40_db=_median_of_all(rows, "seconds_to_40_db"),
        failures=count_failures(rows),
        revision="; ".join(revisions(rows)),
    )


def count_verdicts(rows: Iterable[Row], verdict: str = "timesteps_verdict") -> dict[str, int] | None:
    """How many timesteps of the rows were recovered exactly, not at all and wrongly; None if all were given.

    With ``verdict`` "labels_verdict" it counts labels, of which there may be none.
    """
    verdicts: list[dict[str, int]] = [row[verdict] for row in rows if row.get(verdict) is not None]
    return {name: sum(verdict[name] for verdict in verdicts) for name in verdicts[0]} if verdicts else None


def count_failures(rows: Iterable[Row]) -> dict[str, int]:
    """How many of the rows failed, by their reason."""
    return dict(Counter(row["status"] for row in rows if row["status"] != OK))


def _median_of_finished(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row["status"] == OK]
    return statistics.median(values) if values else None


def _median_of_all(rows: Sequence[Row], name: str) -> float | None:
    median = statistics.median(float("inf") if row.get(name) is None else row[name] for row in rows)
    return None if median == float("inf") else median
