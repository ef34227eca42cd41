"""The file that keeps a Reconstruction: safetensors, with everything that is no tensor as JSON in the metadata."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file

from attacks.attack import AttackError, Reconstruction
from fl_sim.errors import UserError, one_line
from fl_sim.network import read_safetensors
from fl_sim.network.json_text import parse_json

_TENSORS = ("images", "timesteps", "labels")
_NAME = "name"


class _Facts(BaseModel):
    """What the metadata holds: all of a Reconstruction that is no tensor."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: str
    matching_loss: float
    evaluations: int
    seconds: float
    device: str
    settings: dict[str, Any]
    seed: int
    peak_memory: float | None = None
    representative: bool = False


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
        stored, metadata = read_safetensors(path)
        facts = _Facts.model_validate(parse_json(metadata["attack"]))
        tensors: dict[str, Any] = {name: stored[name] for name in _TENSORS if name in stored}
        found = Reconstruction(**tensors, attack=facts.name, **facts.model_dump(exclude={_NAME}))
        _check(found)
    except (UserError, LookupError, TypeError, ValueError) as error:
        raise AttackError(f"{path}: not a readable reconstruction: {one_line(error)}") from error
    return found


def _check(found: Reconstruction) -> None:
    """ValueError if the tensors are not those of a reconstruction."""
    images, timesteps = found.images, found.timesteps
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3) or images.dtype != torch.float32:
        raise ValueError(f"images are {images.dtype} of shape {list(images.shape)}")
    if not bool(((images >= 0) & (images <= 1)).all()):  # refuses NaN too
        raise ValueError("images leave [0, 1]")
    for values in (timesteps, *([] if found.labels is None else [found.labels])):
        if values.dtype != torch.int64 or values.ndim != 1:
            raise ValueError(f"timesteps or labels are {values.dtype} of shape {list(values.shape)}")
