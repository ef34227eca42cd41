"""The file that keeps a Reconstruction: safetensors, with everything that is no tensor as JSON in the metadata."""

import dataclasses
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from attacks.attack import AttackError, Reconstruction
from fl_sim.errors import one_line

_TENSORS = ("images", "timesteps", "labels")
_NAME = "name"


def save_reconstruction(path: Path, reconstruction: Reconstruction) -> None:
    """Write ``images``, ``timesteps`` and any ``labels`` as tensors, the rest under the metadata key ``attack``."""
    facts = {field.name: getattr(reconstruction, field.name) for field in dataclasses.fields(reconstruction)}
    tensors = {name: facts.pop(name) for name in _TENSORS}
    tensors = {name: value.contiguous() for name, value in tensors.items() if value is not None}
    facts[_NAME] = facts.pop("attack")
    save_file(tensors, path, metadata={"attack": json.dumps(facts)})


def load_reconstruction(path: Path) -> Reconstruction:
    """Read back what ``save_reconstruction`` wrote.

    Raises:
        AttackError: if the file is missing, truncated or no reconstruction.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in _TENSORS if name in file.keys()}  # noqa: SIM118 (no dict)
            facts = json.loads((file.metadata() or {})["attack"])
        return Reconstruction(**tensors, attack=facts.pop(_NAME), **facts)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise AttackError(f"{path}: not a readable reconstruction: {one_line(error)}") from error
