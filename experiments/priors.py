"""The priors that attacks are given: no image that a client holds may be among those that they were trained on.

A checkpoint's metadata lists them, where ``fl-sim train-prior`` made it. The attacker gets the file, never this check.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.prior_images import HASHES, PHOTOGRAPHS
from experiments.public_images import image_hashes, read_all
from experiments.settings import ExperimentSettings
from fl_sim.checkpoint import Checkpoint, read_checkpoint
from fl_sim.config import DataSettings, SettingsError
from fl_sim.network import ConfigError

PRIOR = "prior"
"""The argument of an attack that names one."""


def check_priors(settings: ExperimentSettings, channels: int) -> tuple[str, ...]:
    """Check the priors of all attacks; returns a line on each for who starts the run.

    ``channels``: of the run's images.

    Raises:
        SettingsError: if a prior was trained on an image that the federation holds.
    """
    lines, private = [], None
    for name, arguments in settings.attack.arguments.items():
        checkpoint = _read(arguments)
        if checkpoint is None:
            continue
        prior = f"attack.args.{name}.{PRIOR} = {settings.attack.args[name][PRIOR]!r}"
        listed = frozenset(_strings(checkpoint.notes, HASHES))
        if listed and private is None:
            private = image_hashes(read_all(settings.data, channels))
        _check(prior, listed, private or (), _strings(checkpoint.notes, PHOTOGRAPHS), settings.data)
        lines.append(f"prior of {name}: {_described(checkpoint)}")
    return tuple(lines)


def _read(arguments: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint that the arguments name; None where they name none that can be read, which the attack refuses."""
    source = arguments.get(PRIOR)
    try:
        return read_checkpoint(Path(source).expanduser()) if isinstance(source, str) else None
    except (ConfigError, RuntimeError):  # RuntimeError: the home of nobody
        return None


def _check(
    prior: str, listed: frozenset[str], private: Iterable[str], photographs: Iterable[str], data: DataSettings
) -> None:
    shared = sorted({*photographs} & {*data.photographs}) if data.name == "bundled" else []
    if shared:
        raise SettingsError(
            f"{prior}: it was trained on {', '.join(shared)}, of which clients hold tiles; allowed: a prior of other "
            "photographs, or other data.photographs"
        )
    held = [digest for digest in private if digest in listed]
    if held:
        raise SettingsError(
            f"{prior}: it was trained on {len(held)} of the clients' images; allowed: a prior of images that no client "
            "holds, or other images for the clients (data.limit: the first ones)"
        )


def _described(checkpoint: Checkpoint) -> str:
    listed, photographs = len(_strings(checkpoint.notes, HASHES)), _strings(checkpoint.notes, PHOTOGRAPHS)
    if listed:
        return f"trained on {listed} images, none of which a client holds"
    if photographs:
        return f"trained on photographs: {', '.join(photographs)}"
    return "its file does not say on which images it was trained"


def _strings(notes: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The strings under ``key`` of metadata that may be anyone's."""
    values = notes.get(key)
    return tuple(value for value in values if isinstance(value, str)) if isinstance(values, list) else ()
