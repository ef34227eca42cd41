"""The file that keeps ClassReconstructions: safetensors, with everything that is no tensor as JSON in the metadata."""

import dataclasses
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from attacks.attack import AttackError
from attacks.model_inversion.model_inversion import ClassReconstructions
from fl_sim.errors import one_line

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
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
            facts = json.loads((file.metadata() or {})[METADATA])
        return ClassReconstructions(**tensors, **facts)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise AttackError(f"{path}: not readable as the result of a model inversion: {one_line(error)}") from error
