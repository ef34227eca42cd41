"""The files of a run and where they are."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from attacks.attack import AttackError, Reconstruction
from attacks.observation import UpdateId
from attacks.reconstruction_file import load_reconstruction
from experiments.settings import ExperimentSettings
from fl_sim.config import SettingsError
from fl_sim.errors import UserError, explain, printable
from fl_sim.files import write_atomically
from fl_sim.settings_file import dump_toml, load_settings

REPORTED_PACKAGES = (
    "fl-sim",
    "torch",
    "torchvision",
    "diffusers",
    "flwr",
    "flwr-datasets",
    "ray",
    "numpy",
    "lpips",
    "piq",
)


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run; every file in it has its name here."""

    path: Path

    @classmethod
    def create(cls, path: Path, settings: ExperimentSettings) -> "RunDirectory":
        """Make the folder and write the settings into it.

        Raises:
            SettingsError: if ``path`` is there and is not an empty folder, or another run begins in it at the same
                moment; it stays untouched.
        """
        make_empty_folder(path)
        directory = cls(path)
        with locked(path, f"--out {path}: another run begins in this folder; allowed: a new or an empty folder"):
            check_empty_folder(path)
            write_atomically(directory.config, lambda file: file.write_text(dump_toml(settings), encoding="utf-8"))
        return directory

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """The folder of a run that was started before, finished or not.

        Raises:
            SettingsError: if it is none, or has links that lead out of it: a run that goes on would write there.
        """
        directory = cls(path)
        if not directory.config.is_file():
            raise SettingsError(f"{path}: not a run directory: it has no config.toml")
        check_links(path)
        return directory

    def take_back(self) -> None:
        """Empty the folder of a run that turned out impossible before it began."""
        if not self.environment.is_file():
            for file in (self.config, self.base, self.progress):
                file.unlink(missing_ok=True)

    @property
    def ended(self) -> bool:
        """Whether the run was finished, report included."""
        return self.model.is_file() and not self.state.is_file()

    @property
    def config(self) -> Path:
        """The resolved settings, both seeds included."""
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        """Versions, devices, and what could not be computed here."""
        return self.path / "environment.json"

    @property
    def leakage_csv(self) -> Path:
        """The leakage table, which grows row by row as results come."""
        return self.path / "leakage.csv"

    @property
    def leakage_parquet(self) -> Path:
        """The leakage table as of the last finished round."""
        return self.path / "leakage.parquet"

    @property
    def chance(self) -> Path:
        """What a guess would have got, one row per attack and metric (experiments/chance_table.py)."""
        return self.path / "chance.parquet"

    @property
    def rounds(self) -> Path:
        """One row per round."""
        return self.path / "rounds.parquet"

    @property
    def state(self) -> Path:
        """Where the federation is, until the run has ended: what it takes to go on (experiments/run_state.py)."""
        return self.path / "state.safetensors"

    @property
    def progress(self) -> Path:
        """Where the run is, and that it lives, for those who watch; gone when nobody works here."""
        return self.path / "progress.json"

    @property
    def captures(self) -> Path:
        """The folder of the updates that the server saw, one file each."""
        return self.path / "captures"

    @property
    def reconstructions(self) -> Path:
        """The folder of the reconstructions."""
        return self.path / "reconstructions"

    @property
    def base(self) -> Path:
        """The whole model before the first round, if clients train and send only a part of it."""
        return self.path / "base.safetensors"

    @property
    def model_average(self) -> Path:
        """The moving average of the global models, if strategy.ema is set."""
        return self.path / "model-ema.safetensors"

    @property
    def model(self) -> Path:
        """The global model after the last round."""
        return self.path / "model.safetensors"

    @property
    def models(self) -> Path:
        """The folder of the global models that a model inversion attacks."""
        return self.path / "models"

    @property
    def inversion(self) -> Path:
        """What the model inversion found, one row per image."""
        return self.path / "inversion.parquet"

    @property
    def inversions(self) -> Path:
        """The folder of what the model inversion found."""
        return self.path / "inversions"

    @property
    def utility(self) -> Path:
        """Utility of the model before the first round, and the held-out photographs."""
        return self.path / "utility.json"

    @property
    def samples(self) -> Path:
        """A grid of images sampled from the final model."""
        return self.path / "samples.png"

    @property
    def tensorboard(self) -> Path:
        """The folder of what TensorBoard shows, if it was asked for."""
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        """The report to open in a browser."""
        return self.path / "report.html"

    def reconstruction(self, round_number: int, client: int, attack: str, observer: int | None = None) -> Path:
        """The file of one reconstruction, by the server or by the curious peer ``observer``."""
        return self.reconstructions / f"{UpdateId(round_number, client, observer).stem}-{attack}.safetensors"

    def load_reconstruction(self, update: UpdateId, attack: str) -> Reconstruction | None:
        """What the attack made of an update; None if there is no file of it that can be read."""
        try:
            return load_reconstruction(self.reconstruction(update.round, update.client, attack, update.observer))
        except AttackError:
            return None

    def global_model(self, round_number: int) -> Path:
        """The global model after one round."""
        return self.models / f"round-{round_number:04d}.safetensors"

    def class_reconstructions(self, round_number: int, method: str) -> Path:
        """The file of what a model inversion found in the global model after one round."""
        return self.inversions / f"round-{round_number:04d}-{method}.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other run out of the folder meanwhile; SettingsError if one is in it."""
        with locked(self.config, f"{self.path}: another run is in this folder; allowed: to wait for its end"):
            yield

    def settings(self) -> ExperimentSettings:
        """The settings that the run was started with."""
        return load_settings(ExperimentSettings, self.config, recorded=True)

    def run_name(self) -> str:
        """The run's name in the leakage table: a digest of its settings, the same wherever it is repeated."""
        return sha256(self.config.read_bytes()).hexdigest()[:12]

    def write_environment(self, not_computed: dict[str, str], metrics: dict[str, str]) -> None:
        """Record this machine, the definitions of the metrics, and why any is missing."""
        content = environment() | {"metrics": metrics, "not_computed": not_computed}
        write_atomically(self.environment, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"))


@contextmanager
def reading(*folders: Path) -> Iterator[None]:
    """Whatever run directories that somebody else wrote make a library raise is a SettingsError of one line."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # a value of another type may break anything that is made of it
        named = ", ".join(map(str, folders))
        raise SettingsError(f"{named}: its files are damaged, or of different runs: {explain(error)}") from error


def check_links(folder: Path) -> None:
    """SettingsError if a link in the folder, however deep, leads out of it: what is written there would go along."""
    for within, folders, files in os.walk(folder):
        for entry in (Path(within, name) for name in folders + files):
            if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(os.path.realpath(folder)):
                raise SettingsError(f"{printable(entry)}: a link that leads out of its folder")


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Lock a file or a folder meanwhile; SettingsError with the line ``busy`` if somebody else has locked it."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(busy) from error
        yield
    finally:
        os.close(descriptor)


def make_empty_folder(path: Path) -> None:
    """Make the folder ``path``, or take it if it is empty; SettingsError otherwise."""
    check_empty_folder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {path}: cannot be used as a folder: {error.strerror}") from error


def check_empty_folder(path: Path) -> None:
    """SettingsError unless ``path`` is an empty folder or could be made; nothing is made.

    What a kill left of a file that was being written does not count.
    """
    try:
        occupied = path.exists() and not all(fnmatch(there.name, ".*.unfinished") for there in path.iterdir())
        above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    except OSError as error:
        raise SettingsError(f"--out {path}: cannot be used as a folder: {error.strerror}") from error
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise SettingsError(f"--out {path}: {above} is no folder that can be written to")
    if occupied:
        raise SettingsError(f"--out {path}: the folder is not empty; allowed: a new or an empty folder")


def environment() -> dict[str, Any]:
    """Versions and devices of this machine."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": gpus,
        "packages": {name: _version(name) for name in REPORTED_PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
