"""What the machines of an existing Ray cluster must have: the package, the images, and the files that a run names."""

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import attacks
import fl_sim
from experiments.experiment import Experiment
from experiments.priors import PRIOR
from experiments.source_hash import hash_files
from fl_sim.config import DataSettings, SettingsError
from fl_sim.errors import UserError, message
from fl_sim.images.pixels import BrokenImageError
from fl_sim.images.sources import list_images

ANSWER_LIMIT = 120.0
"""Seconds that a node may take to say what it has: it starts a process for that, which imports torch."""

_VERSIONS = ("fl-sim", "torch", "diffusers", "flwr", "numpy", "scikit-image", "scikit-learn")
_LOOKED_AT = 8
"""Images of which the pixels are compared; of the others only the names are."""

Facts = dict[str, str]


def check_nodes(experiment: Experiment, base: Path) -> None:
    """See that every node of the cluster that this process has joined has what this machine has.

    ``base``: the file of the whole model, which clients read where they train a part of it.

    Raises:
        SettingsError: naming a node, what it has, and what is here.
    """
    settings = experiment.settings
    files = [str(base.resolve())] if experiment.recipe.partial else []
    files += [str(given[PRIOR]) for given in settings.attack.arguments.values() if isinstance(given.get(PRIOR), str)]
    here, there = facts(settings.data, files), _of_nodes(settings.data, files)
    address = f"ray.address = {settings.ray.address!r}"
    for node, found in there.items():
        if isinstance(found, str):
            raise SettingsError(f"{address}: node {node} cannot be used: {found}; allowed: fl-sim installed on it")
        if differs := difference(here, found):
            raise SettingsError(f"{address}: node {node}: {differs}; allowed: the same on every node")


def facts(data: DataSettings, files: Sequence[str]) -> Facts:
    """What this machine has: versions, the source that clients and attacks run, the images, and ``files``."""
    found = {name: version(name) for name in _VERSIONS}
    found["source of fl-sim"] = _source()
    found["images"] = _images(data)
    return found | {file: _digest(Path(file)) for file in files}


def difference(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """The first fact that is another one elsewhere, in words; None if all are equal."""
    for name, expected in here.items():
        if there.get(name) != expected:
            return f"{name}: {there.get(name, 'missing')} there, {expected} here"
    return None


def _of_nodes(data: DataSettings, files: Sequence[str]) -> dict[str, Facts | str]:
    """The facts of every node that runs anything, or why there are none."""
    remote = ray.remote(facts)
    asked = {}
    for node in ray.nodes():
        if node["Alive"] and _can_work(node["Resources"]):
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            asked[name] = remote.options(num_cpus=0, max_retries=0, scheduling_strategy=where).remote(data, files)
    return {name: _answer(reply) for name, reply in asked.items()}


def _can_work(resources: Collection[str]) -> bool:
    return not {"CPU", "GPU", "attack"}.isdisjoint(resources)


def _answer(reply: Any) -> Facts | str:
    try:
        answer: Facts = ray.get(reply, timeout=ANSWER_LIMIT)
        return answer
    except GetTimeoutError:
        return f"no answer within {ANSWER_LIMIT:g} s"
    except Exception as error:  # whatever an import there raises, and what Ray makes of it
        return message(getattr(error, "cause", None) or error).rpartition("Error: ")[2]


def _source() -> str:
    """The first 12 hex digits of the SHA-256 of all Python files of fl_sim and attacks, with their paths."""
    packages = [Path(str(package.__file__)).parent for package in (fl_sim, attacks)]
    return hash_files((path for package in packages for path in package.rglob("*.py")), packages[0].parent)[:12]


def _images(data: DataSettings) -> str:
    """How many images there are, and a digest of their names and of the pixels of some; or what is wrong with them."""
    try:
        images = list_images(data)
    except UserError as error:
        return message(error)
    digest = sha256(repr((images.photographs, images.labels)).encode())
    for index in range(0, len(images), max(1, len(images) // _LOOKED_AT)):
        try:
            digest.update(images.crop(index).tobytes())
        except BrokenImageError:
            digest.update(b"broken")
    return f"{len(images)} images ({digest.hexdigest()[:12]})"


def _digest(file: Path) -> str:
    try:
        return sha256(file.expanduser().read_bytes()).hexdigest()[:12]
    except OSError as error:
        return str(error.strerror)
