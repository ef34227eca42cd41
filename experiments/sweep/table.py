"""The table of a sweep: a row for every run and attack."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pandas as pd

from experiments.leakage import read_leakage
from experiments.rounds import read_rounds
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from experiments.summary import Summary, summarise
from experiments.sweep.directory import SweepDirectory
from experiments.sweep.file import KeyPath
from experiments.utility import ACCURACY, LOSS
from fl_sim.files import write_atomically
from fl_sim.settings_file import dotted_key, toml_value

ENDED, LEFT = "ended", "not ended"
"""The status of a run that is whole, and of one that is not yet; a failed one has the reason."""

FIGURES = ("attack", "median_psnr", "share_recognisable", "images", "timesteps_recovered")
COLUMNS = ("run", "directory", "status", *FIGURES, "utility", "seed")
"""Of the table, after those of the settings that vary."""

Row = dict[str, Any]


@dataclass(frozen=True)
class SweepTable:
    """The rows of a sweep's runs, kept in its folder as CSV and as parquet.

    Attributes:
        planned: the settings of every run by its name, in order.
        rows: those of every run; a run that has not ended has no figures.
    """

    directory: SweepDirectory
    axes: tuple[KeyPath, ...]
    planned: Mapping[str, ExperimentSettings]
    rows: dict[str, list[Row]]

    @classmethod
    def of(
        cls, directory: SweepDirectory, axes: Iterable[KeyPath], planned: Mapping[str, ExperimentSettings]
    ) -> "SweepTable":
        """The table as of what is in the folder."""
        table = cls(directory, tuple(axes), planned, {})
        for name in planned:
            table.update(name, ENDED if directory.run(name).ended else LEFT)
        return table

    @property
    def columns(self) -> list[str]:
        """The names of the columns of the settings that vary."""
        return [dotted_key(path) for path in self.axes]

    def update(self, name: str, status: str) -> None:
        """Read a run's figures, if it has ended."""
        run, settings = self.directory.run(name), self.planned[name]
        tree = settings.model_dump(mode="json")
        varied = {dotted_key(path): _cell(_look_up(tree, path)) for path in self.axes}
        about = {"run": name, "directory": name, "status": status}
        ended = status == ENDED
        figures = [_figures(summary) for summary in summarise(read_leakage(run.leakage_csv))] if ended else []
        last = {"utility": _utility(run, settings) if ended else math.nan, "seed": settings.seed}
        waiting = [{"attack": attack} for attack in settings.attack.names] or [{}]
        self.rows[name] = [varied | about | dict.fromkeys(FIGURES) | figure | last for figure in figures or waiting]

    def frame(self) -> pd.DataFrame:
        """The table, in the order of the plan."""
        rows = [row for name in self.planned for row in self.rows[name]]
        frame = pd.DataFrame(rows, columns=[*self.columns, *COLUMNS], dtype="object")
        frame = frame.assign(**{name: _of_one_type(frame[name]) for name in self.columns})
        return frame.astype(
            dict.fromkeys(("images", "timesteps_recovered", "seed"), "Int64")
            | dict.fromkeys(("median_psnr", "share_recognisable", "utility"), "float64")
        )

    def save(self) -> None:
        """Replace both files."""
        frame = self.frame()
        write_atomically(self.directory.csv, lambda file: frame.to_csv(file, index=False))
        write_atomically(self.directory.parquet, frame.to_parquet)


def _figures(summary: Summary) -> Row:
    return {
        "attack": summary.attack,
        "median_psnr": summary.median_psnr,
        "share_recognisable": summary.share_recognisable,
        "images": summary.images,
        "timesteps_recovered": summary.timesteps_recovered,
    }


def _utility(run: RunDirectory, settings: ExperimentSettings) -> float:
    """The model's held-out loss after the last round, of a classifier its accuracy; NaN where it was not measured."""
    rounds = read_rounds(run.rounds)
    column = LOSS if settings.task == "diffusion" else ACCURACY
    measured = pd.to_numeric(rounds[column], errors="coerce").tolist() if column in rounds else []
    return float(measured[-1]) if measured else math.nan


def _look_up(tree: Any, path: KeyPath) -> Any:
    return reduce(lambda found, name: found.get(name) if isinstance(found, dict) else None, path, tree)


def _cell(value: Any) -> Any:
    """The value as a table has it: lists and tables as TOML."""
    return toml_value(value) if isinstance(value, list | dict) else value


def _of_one_type(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """The column with values of one type, as parquet has it: as text if they are of several."""
    kinds = {type(value) for value in column.dropna()}
    if kinds == {int, float}:
        return column.astype("float64")
    if len(kinds) <= 1:
        return column
    return column.map(toml_value, na_action="ignore")
