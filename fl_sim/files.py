"""Atomic writing: a file is complete or does not exist. What the system refuses names the file."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in the place of ``path`` in one step.

    Raises:
        OSError: if ``path`` cannot be written, or is something else than a file; nothing is left then.
    """
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise FileExistsError(errno.EEXIST, "is there and is no file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)  # somebody may have put a link there
    try:
        with naming(path):
            write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that names none, such as a full disk."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _system_error(error)
        if number is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _system_error(error: SafetensorError) -> int | None:
    """The number of the system's error that safetensors had, if it was one."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
