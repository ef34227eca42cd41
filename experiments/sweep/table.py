"""The table of a sweep: a row for every run and attack."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.leakage import read_leakage
from experiments.rounds import read_rounds
from experiments.run_directory import RunDirectory, reading
from experiments.settings import ExperimentSettings
from experiments.summary import Summary, summarise
from experiments.sweep.directory import SweepDirectory
from experiments.sweep.file import KeyPath
from experiments.utility import ACCURACY, LOSS
from fl_sim.errors import UserError
from fl_sim.files import write_atomically
from fl_sim.settings_file import dotted_key, toml_value

ENDED, LEFT, FAILED = "ended", "not ended", "failed: "
"""The status of a run that is whole, of one that is not yet, and what stands before the reason of one that failed."""

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
    def failed(self) -> dict[str, str]:
        """Why a run failed, or cannot be read, by the names of those runs."""
        statuses = {name: str(rows[0]["status"]) for name, rows in self.rows.items()}
        return {name: status.removeprefix(FAILED) for name, status in statuses.items() if status.startswith(FAILED)}

    @property
    def columns(self) -> list[str]:
        """The names of the columns of the settings that vary."""
        return [dotted_key(path) for path in self.axes]

    def update(self, name: str, status: str) -> None:
        """Read a run's figures, if it has ended; one that is damaged has failed."""
        settings = self.planned[name]
        figures: list[Row] = []
        utility = math.nan
        if status == ENDED:
            try:
                figures, utility = _read(self.directory.run(name).path, settings)
            except (UserError, OSError) as error:
                status = f"{FAILED}{_reason(error)}; to run it again, remove its folder"
        tree = settings.model_dump(mode="json")
        varied = {dotted_key(path): _cell(_look_up(tree, path)) for path in self.axes}
        about = {"run": name, "directory": name, "status": status}
        last = {"utility": utility, "seed": settings.seed}
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


def _read(path: Path, settings: ExperimentSettings) -> tuple[list[Row], float]:
    """The figures of a run's attacks, and its model's utility; UserError or OSError if it is damaged."""
    run = RunDirectory.open(path)
    with reading(path):
        return [_figures(summary) for summary in summarise(read_leakage(run.leakage_csv))], _utility(run, settings)


def _reason(error: UserError | OSError) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


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
