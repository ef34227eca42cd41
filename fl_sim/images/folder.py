"""Image files in a folder and its sub-folders."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

from fl_sim.config import DataSettings, SettingsError
from fl_sim.errors import printable
from fl_sim.images.classes import order_classes
from fl_sim.images.image_set import ImageSet
from fl_sim.images.pixels import centre_crop, identify, read_rgb

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)
"""Kinds of files that are read, in small or capital letters."""

_IMAGE, _FOLDER, _HIDDEN, _BROKEN, _LOOP = "image", "folder", "hidden", "broken link", "link to a folder above"


def list_folder(settings: DataSettings) -> ImageSet:
    """Every image under ``data.path``, sorted by path, cropped to its centre; an image's label is its folder.

    Raises:
        SettingsError: if there is no such folder, no image in it, or a folder in it that cannot be read.
    """
    root = _root(settings)
    entries = list(_walk(root, "", frozenset({_identity(root.stat())})))
    files = sorted((name for name, kind in entries if kind == _IMAGE), key=lambda name: name.split("/"))
    skipped = Counter(kind for _, kind in entries if kind not in (_IMAGE, _FOLDER))
    if not files:
        raise SettingsError(
            f"data.path = {str(root)!r}: no images in this folder{count_skipped(skipped)}; allowed: "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    used = tuple(files[: settings.limit])

    def crop(index: int) -> Image.Image:
        return centre_crop(read_rgb(root / used[index], str(root / used[index])), settings.height_width)

    return ImageSet(
        settings.height_width,
        used,
        labels=tuple(_folder_of(name) for name in used),
        classes=order_classes({_folder_of(name) for name in files}),
        remedy="put the images of each class into a sub-folder of its own",
        crop=crop,
        identify=lambda index: identify(root / used[index], str(root / used[index])),
        strict=settings.strict,
        found=len(files),
        skipped=skipped,
        folders=tuple(sorted(name for name, kind in entries if kind == _FOLDER and "/" not in name)),
    )


def count_skipped(skipped: Counter[str]) -> str:
    """What was skipped, to end a line: ``; skipped: 6 .gif, 2 hidden``; empty if nothing was."""
    kinds = ", ".join(
        f"{number} {kind}" for kind, number in sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    )
    return f"; skipped: {kinds}" if kinds else ""


def _folder_of(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _root(settings: DataSettings) -> Path:
    root = settings.path
    if root is None or not root.exists():
        raise SettingsError(f"data.path = {str(root)!r}: no such folder")
    if not root.is_dir():
        raise SettingsError(f"data.path = {str(root)!r}: a file; allowed: a folder")
    return root


def _walk(root: Path, folder: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """(path below ``root``, kind) of everything in a folder and below it; ``above`` are the folders around it.

    Links are followed, except to a folder in ``above``: that would never end.
    """
    try:
        found = list(os.scandir(root / folder))
    except OSError as error:
        raise SettingsError(f"{printable(str(root / folder))}: cannot be read: {error.strerror}") from error
    for entry in found:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            yield path, _HIDDEN
        elif (status := _status(entry)) is None:
            yield path, _BROKEN
        elif not stat.S_ISDIR(status.st_mode):
            yield path, _kind(entry.name, status)
        elif _identity(status) in above:
            yield path, _LOOP
        else:
            yield path, _FOLDER
            yield from _walk(root, path, above | {_identity(status)})


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The status of an entry, or of what it links to; None for a broken link."""
    try:
        return entry.stat()
    except PermissionError as error:
        raise SettingsError(f"{printable(entry.path)}: cannot be read: {error.strerror}") from error
    except OSError:
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _kind(name: str, status: os.stat_result) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    if not stat.S_ISREG(status.st_mode):
        return "special file"
    if suffix in SUFFIXES:
        return _IMAGE
    return suffix if suffix[1:].isalnum() and len(suffix) < 10 else "of no known kind"
