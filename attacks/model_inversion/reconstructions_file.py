"""The file that keeps ClassReconstructions: safetensors, with everything that is no tensor as JSON in the metadata."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from attacks.attack import AttackError
from attacks.model_inversion.model_inversion import ClassReconstructions
from fl_sim.errors import UserError, one_line
from fl_sim.network import read_safetensors
from fl_sim.network.json_text import parse_json

METADATA = "inversion"
_TENSORS = ("images", "classes")


def save_reconstructions(path: Path, found: ClassReconstructions) -> None:
    """Write ``images`` [K,R,C,H,W] and ``classes`` [K] as tensors, the rest under the metadata key ``inversion``."""
    facts = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    tensors = {name: facts.pop(name).contiguous() for name in _TENSORS}
    save_file(tensors, path, metadata={METADATA: json.dumps(facts)})


def load_reconstructions(path: Path) -> ClassReconstructions:
    """Read back what ``save_reconstructions`` wrote.

    Raises:
        AttackError: if the file is missing, truncated or holds something else.
    """
    try:
        tensors, metadata = read_safetensors(path)
        facts: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
        found = ClassReconstructions(**facts, **parse_json(metadata[METADATA]))
        if found.images.ndim != 5 or found.classes.shape != found.images.shape[:1]:
            raise ValueError(f"images have shape {list(found.images.shape)}, classes {list(found.classes.shape)}")
    except (UserError, LookupError, TypeError, ValueError) as error:
        raise AttackError(f"{path}: not readable as the result of a model inversion: {one_line(error)}") from error
    return found
