"""Atomic writing: a file is complete or does not exist."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in the place of ``path`` in one step.

    Raises:
        OSError: if ``path`` cannot be written, or is something else than a file; nothing is left then.
    """
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise FileExistsError(errno.EEXIST, "is there and is no file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
