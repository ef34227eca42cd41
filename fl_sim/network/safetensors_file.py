"""The one reader of files from outside: safetensors only, and a clear error for any other file."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from fl_sim.errors import message
from fl_sim.network.configuration import ConfigError

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
"""Names of files that hold pickled weights end so."""
MOST_TENSORS = 50_000
"""In one file: an empty tensor takes thirty times the memory of its line in the header."""
ZIP = b"PK\x03\x04"
"""First bytes of a file that torch.save wrote."""


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata; nothing is ever unpickled.

    Raises:
        ConfigError: if it is no whole safetensors file; the line, which does not name the file, says what it is.
    """
    if reason := _no_file(path):
        raise ConfigError(f"{reason}; allowed: a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            if len(names := file.keys()) > MOST_TENSORS:
                raise ConfigError(f"it has {len(names)} tensors; allowed: {MOST_TENSORS} at most")
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except ConfigError:
        raise
    except Exception as error:  # also of a type that torch does not know, and of a name that is no Unicode
        raise ConfigError(_why_unreadable(path, error)) from error


def _no_file(path: Path) -> str | None:
    """What is at ``path`` instead of a regular file; None if it is one. A named pipe would block whoever opens it."""
    try:
        if path.is_dir():
            return "it is a folder"
        if not path.exists():
            return "there is no such file"
        return None if path.is_file() else "it is no regular file"
    except OSError as error:
        return f"it cannot be looked at: {error.strerror}"


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(len(ZIP))
    except OSError as denied:
        return f"it cannot be read: {denied.strerror}"
    if not start:
        return "it is empty; allowed: a safetensors file"
    if path.suffix in PICKLE_SUFFIXES or start == ZIP:
        return "it is a pickle, which is never opened; allowed: a safetensors file"
    return f"it is no whole safetensors file: {message(error)}"
