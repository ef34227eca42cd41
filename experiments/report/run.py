"""What a report reads: a run directory, finished or not."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.chance_table import COLUMNS
from experiments.commands import attack_command
from experiments.experiment import build_recipe
from experiments.inversion_table import read_inversions
from experiments.leakage import read_leakage
from experiments.rounds import read_rounds
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from experiments.summary import Summary, dropout_caveat, summarise
from fl_sim.config import SettingsError
from fl_sim.errors import explain
from fl_sim.wire import Recipe


@dataclass(frozen=True)
class Run:
    """What a run directory holds, finished or not."""

    directory: RunDirectory
    settings: ExperimentSettings
    leakage: pd.DataFrame
    rounds: pd.DataFrame
    utility: dict[str, Any]
    environment: dict[str, Any]
    inversion: pd.DataFrame
    chance: pd.DataFrame

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read a run directory; SettingsError if it is none or holds no leakage table."""
        directory = RunDirectory.open(path)
        if not directory.leakage_csv.is_file():
            raise SettingsError(
                f"{path}: the run has no leakage.csv: it stopped before its first round, or the table was removed"
            )
        return cls(
            directory,
            directory.settings(),
            read_leakage(directory.leakage_csv),
            read_rounds(directory.rounds),
            _read_json(directory.utility),
            _read_json(directory.environment),
            _read(directory.inversion, read_inversions),
            _read_chance(directory.chance),
        )

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.directory.path.resolve().name

    @cached_property
    def summaries(self) -> list[Summary]:
        """The figures of every attack."""
        return summarise(self.leakage)

    @property
    def denoises(self) -> bool:
        """Whether the clients trained a diffusion model."""
        return self.settings.task == "diffusion"

    @property
    def labelled(self) -> bool:
        """Whether the clients' training used class labels."""
        return bool(self.leakage["label"].notna().any())

    @property
    def attack_command(self) -> str:
        """The command that attacks what has not been attacked."""
        return attack_command(self.directory.path, self.settings.model.factory)

    @cached_property
    def recipe(self) -> Recipe:
        """How the clients trained; SettingsError if the checkpoint that they started from is missing."""
        return build_recipe(self.settings)

    def dropout_caveat(self) -> str:
        """What dropout does to the figures; empty if there is none, or the checkpoint is missing."""
        try:
            return dropout_caveat(self.recipe.model) if self.summaries else ""
        except SettingsError:
            return ""


def _read_json(path: Path) -> dict[str, Any]:
    """The content of the file, empty if there is no file."""
    if not path.is_file():
        return {}
    content = _read(path, lambda file: json.loads(file.read_text(encoding="utf-8")))
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: damaged: it holds no table")
    return content


def _read_chance(path: Path) -> pd.DataFrame:
    """What a guess reaches, metric by metric; empty if the run did not measure it."""
    if not path.is_file():
        return pd.DataFrame()
    chance: pd.DataFrame = _read(path, pd.read_parquet)
    if lacking := [column for column in COLUMNS if column not in chance]:
        raise SettingsError(f"{path}: damaged: it has no column {lacking[0]!r}")
    return chance


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    """What ``read`` makes of the file; SettingsError if it is damaged."""
    try:
        return read(path)
    except Exception as error:  # whatever a library raises about a file that was cut off
        raise SettingsError(f"{path}: damaged: {explain(error)}") from error
