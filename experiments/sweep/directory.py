"""The folder of a sweep: its runs, its tables, and whether what is there belongs to it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.run_directory import RunDirectory, check_empty_folder, check_links, locked, make_empty_folder
from experiments.settings import ExperimentSettings
from experiments.sweep.file import SweepFile, flatten, load_sweep
from fl_sim.config import SettingsError
from fl_sim.files import write_atomically
from fl_sim.settings_file import dotted_key, dump_toml


@dataclass(frozen=True)
class SweepDirectory:
    """A folder with a run in each of its sub-folders; every other file in it has its name here."""

    path: Path

    @property
    def file(self) -> Path:
        """The sweep's own file, its seeds included: it can be run again, elsewhere."""
        return self.path / "sweep.toml"

    @property
    def csv(self) -> Path:
        """A row for every run and attack."""
        return self.path / "sweep.csv"

    @property
    def parquet(self) -> Path:
        """The same."""
        return self.path / "sweep.parquet"

    @property
    def report(self) -> Path:
        """The comparison of all runs."""
        return self.path / "report.html"

    def run(self, name: str) -> RunDirectory:
        """The directory of one run."""
        return RunDirectory(self.path / name)

    def settings(self, name: str) -> Path:
        """The settings that a run starts with."""
        return self.path / "settings" / f"{name}.toml"

    def log(self, name: str) -> Path:
        """What a run prints."""
        return self.path / "logs" / f"{name}.log"

    def take_up(self, sweep: SweepFile) -> SweepFile:
        """The sweep with the private root that an earlier one in this folder drew.

        Raises:
            SettingsError: if the folder holds something else than a sweep; it is left as it was.
        """
        if not self.file.is_file():
            check_empty_folder(self.path)
            return sweep
        check_links(self.path)
        if not (self._lock.is_file() or self.csv.is_file()):  # a copy may lack hidden files
            raise SettingsError(f"{self.file}: no sweep wrote it; allowed: an --out that is new, empty, or a sweep's")
        before = load_sweep(str(self.file))
        return sweep.model_copy(update={"client_seed": before.client_seed}) if sweep.client_seed is None else sweep

    def check_settings(self, planned: Mapping[str, ExperimentSettings]) -> None:
        """Refuse a plan that has another setting than a run that is there, or lacks that run.

        Raises:
            SettingsError: naming the run and the setting.
        """
        for config in sorted(self.path.glob("*/config.toml")):
            name = config.parent.name
            instead = "the sweep that was started here, with more runs if you like, or another --out"
            if name not in planned:
                raise SettingsError(f"{config.parent}: not a run of this sweep; allowed: {instead}")
            there, here = (_flat(each) for each in (RunDirectory(config.parent).settings(), planned[name]))
            for key in [key for key in here | there if here.get(key) != there.get(key)][:1]:
                raise SettingsError(
                    f"{name}: {key} = {here.get(key)!r}, but the run was started with {there.get(key)!r}; "
                    f"allowed: {instead}"
                )

    def check_has_table(self) -> None:
        """SettingsError if the table is missing: it is written when all runs are planned; or if links lead out."""
        check_links(self.path)
        if not (self.csv.is_file() and self.parquet.is_file()):
            raise SettingsError(
                f"{self.path}: the sweep has no table; allowed once it has: fl-sim sweep {self.file} --out {self.path}"
            )

    def create(self, sweep: SweepFile) -> None:
        """Make the folder, unless an earlier sweep has."""
        if self.file.is_file():
            self._lock.touch()  # a copy may lack it
            return
        make_empty_folder(self.path)
        self._lock.touch()  # tells the folder of a sweep from one with a person's file
        self._write(sweep)

    def write(self, sweep: SweepFile, planned: Mapping[str, ExperimentSettings]) -> None:
        """Write down the sweep and the settings of every run."""
        self._write(sweep)
        for name, settings in planned.items():
            _write(self.settings(name), dump_toml(settings))

    def locked(self) -> AbstractContextManager[None]:
        """Keep every other sweep out of the folder meanwhile; SettingsError if one is in it."""
        return locked(self._lock, f"{self.path}: another sweep is in this folder; allowed: to wait for its end")

    @property
    def _lock(self) -> Path:
        """Locked in place of sweep.toml, which may be replaced meanwhile."""
        return self.path / ".lock"

    def _write(self, sweep: SweepFile) -> None:
        _write(self.file, sweep.to_toml())


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _flat(settings: ExperimentSettings) -> dict[str, Any]:
    """The settings by their dotted keys."""
    return {dotted_key(path): value for path, value in flatten(settings.model_dump(mode="json")).items()}
