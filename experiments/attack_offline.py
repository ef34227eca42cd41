"""``fl-sim attack``: one attack on one captured update, in this process, without the images to compare with."""

import inspect
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from torch import Tensor

from attacks.attack import Attack
from attacks.inversion.evaluation_log import EvaluationLog
from attacks.observation import Observation
from attacks.reconstruction_file import save_reconstruction
from attacks.registry import create
from experiments.bench.provenance import revision, software
from experiments.commands import bold_path, choose_device
from experiments.display import Bar
from experiments.pictures import save_grid
from experiments.run_directory import make_empty_folder
from experiments.settings import ExperimentSettings
from fl_sim.config import SettingsError
from fl_sim.draws import derive_seed
from fl_sim.files import write_atomically
from fl_sim.network import FACTORY, ConfigError, factory_path
from fl_sim.settings_file import load_settings


@dataclass(frozen=True)
class Checkpointing:
    """The file that a search is kept in, whether to go on from it, and the seconds between two writes."""

    path: Path
    resume: bool = False
    every_seconds: float = 300.0

    @classmethod
    def of_options(cls, path: Path | None, resume: bool, every_seconds: float) -> Self | None:
        """What the command line asks for; SettingsError if there is nothing to resume."""
        if path is None and resume:
            raise SettingsError("--resume: needs the file to go on from; allowed: with --checkpoint FILE")
        if math.isnan(every_seconds):
            raise SettingsError("--checkpoint-every nan: allowed: seconds from 0")
        return None if path is None else cls(path, resume, every_seconds)


def attack_capture(
    capture: Path,
    name: str,
    seed: int,
    overrides: list[str],
    out: Path,
    device: str,
    threads: int,
    console: Console,
    checkpointing: Checkpointing | None = None,
    trusted: Sequence[str] = (),
) -> None:
    """Attack the update in ``capture`` and write the reconstruction and a picture of it into ``out``.

    ``seed`` is the run's public seed: the attack gets the one that the run would give it. ``trusted``: factories of
    networks whose code may run (fl_sim/network/factory.py).

    Raises:
        AttackError, CaptureError, SettingsError, CheckpointError: if there is no such attack, capture or device, the
            attack cannot work on the capture, ``out`` is not empty, or the checkpoint is not of this search.
    """
    settings = load_settings(ExperimentSettings, {}, attack_overrides([name], overrides))
    attack = create(name, settings.attack.arguments.get(name))
    observation = Observation.load(capture, trusted_factories(trusted))
    attack.check(observation)
    where = choose_device(device)
    seen = observation.circumstances
    attack_seed = derive_seed(seed, "attack", attack.name, seen.round, seen.client)
    log = None
    if checkpointing is not None:
        search = _identity(capture, attack, attack_seed, where, threads) | {"network": _network_source(seen.model)}
        log = EvaluationLog(
            checkpointing.path, search, resume=checkpointing.resume, every_seconds=checkpointing.every_seconds
        )
    make_empty_folder(out)
    torch.set_num_threads(threads)
    try:
        bar = Bar(console, f"{name} on {capture.name}", "evaluations", "matching loss", may_end_early=True)
        with log or nullcontext(), bar:
            found = attack.reconstruct(observation, attack_seed, where, log=log, watch=bar)
    except BaseException:
        out.rmdir()  # nothing to keep
        raise
    picture = out / "reconstruction.png"
    write_atomically(out / "reconstruction.safetensors", lambda file: save_reconstruction(file, found))
    write_atomically(picture, lambda file: save_grid(file, found.images))
    labels = "" if found.labels is None else f"; labels: {_listed(found.labels)}"
    console.print(
        f"matching loss {found.matching_loss:.3g} after {found.evaluations} evaluations in {found.seconds:.1f} s "
        f"on {found.device}, peak memory {found.peak_memory:.0f} MiB; timesteps: {_listed(found.timesteps)}{labels}",
        highlight=False,
    )
    console.print(f"reconstruction: {bold_path(picture)}", soft_wrap=True)


def _identity(capture: Path, attack: Attack, seed: int, device: str, threads: int) -> dict[str, Any]:
    """All that the result of a search depends on, as JSON; the attack's own source counts where it is not ours."""
    return {
        "capture": _sha256(capture),
        "attack": attack.name,
        "settings": attack.model_dump(mode="json"),
        "seed": seed,
        "device": device,
        "threads": threads,
        "revision": revision(),
        "source": _sha256(Path(inspect.getfile(type(attack)))),
        "software": software(),
    }


def _network_source(model: Mapping[str, Any]) -> str | None:
    """The hash of the file that holds the factory of the network, which has been imported; None if there is none."""
    if FACTORY not in model:
        return None
    return _sha256(Path(inspect.getfile(sys.modules[model[FACTORY].partition(":")[0]])))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _listed(values: Tensor) -> str:
    """The numbers, "unknown" for -1."""
    return ", ".join(str(value) if value >= 0 else "unknown" for value in values.tolist())


def trusted_factories(trusted: Sequence[str]) -> list[str]:
    """The paths of the factories after ``--trust``."""
    try:
        return [factory_path(factory) for factory in trusted]
    except ConfigError as error:
        raise SettingsError(f"--trust {error}") from error


def attack_overrides(names: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """What ``--attack NAME`` and ``--set KEY=VALUE`` are as overrides of a run's settings.

    The key is an argument of the attack; with several attacks it begins with a name. It may be spelt as in a run's
    settings.

    Raises:
        SettingsError: if it is not clear of which attack an argument is.
    """
    return [f"attack.name={json.dumps(list(names))}", *(_spelt_out(names, override) for override in overrides)]


def _spelt_out(names: Sequence[str], override: str) -> str:
    key = override.removeprefix("attack.args.")
    for name in names:
        for prefix in (f"{name}.", f'"{name}".'):
            if key.startswith(prefix):
                return f'attack.args."{name}".{key.removeprefix(prefix)}'
    if len(names) > 1:
        raise SettingsError(
            f"--set {override}: of which attack? allowed: NAME.argument=value, NAME being one of {', '.join(names)}"
        )
    return f'attack.args."{names[0]}".{override}'
