"""One hash of many source files."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path


def hash_files(files: Iterable[Path], root: Path) -> str:
    """The SHA-256 of path below ``root`` and content of the files, sorted by path, in hexadecimal."""
    digest = sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
