"""Whether the files that describe a dataset lead out of its folder: the libraries follow whatever path these name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fl_sim.config import SettingsError
from fl_sim.errors import one_line, printable

MOST_CLASSES = 1_000_000
"""Numbers of classes above this are refused: a name is kept for every number below."""

_CARDS = ("README.md", ".huggingface.yaml")
_TABLES = ("state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json")
_FRONT_MATTER = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---", re.DOTALL)
_OF_THE_DATASET = ("configs", "dataset_info", "dataset_infos")
"""The parts of a card that the libraries follow."""
_FOR_PEOPLE = ("description", "citation", "homepage", "license", "download_checksums")
"""Has links of all kinds, which nobody follows."""


def check_stays_inside(folder: Path) -> None:
    """Check what describes the dataset in a folder, and in the folders of its splits.

    Raises:
        SettingsError: naming the file and the value, if one is an absolute path or an address, goes upwards, or is the
            number of a class above MOST_CLASSES; or if the file cannot be read.
    """
    for file in sorted(_descriptions(folder)):
        try:
            values = list(_values(_read(file), set()))
        except Exception as error:  # whatever a stranger's YAML or JSON makes a parser raise
            raise SettingsError(f"{printable(file)}: cannot be read: {printable(one_line(error))}") from error
        for key, value in values:
            if isinstance(value, str) and _leads_out(value):
                raise SettingsError(f"{printable(file)}: {printable(value)[:200]!r} leads out of the dataset's folder")
            if key.isdecimal() and int(key) > MOST_CLASSES:
                raise SettingsError(f"{printable(file)}: class {key[:50]}; allowed: numbers up to {MOST_CLASSES:,}")


def _descriptions(folder: Path) -> Iterator[Path]:
    places = [folder, *(place for place in folder.iterdir() if place.is_dir())]
    yield from (folder / name for name in _CARDS if (folder / name).is_file())
    yield from (place / name for place in places for name in _TABLES if (place / name).is_file())


def _read(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        return json.loads(text)
    if file.suffix == ".md":
        found = _FRONT_MATTER.match(text)
        text = found[1] if found else ""
    tree = yaml.safe_load(text)
    return {key: value for key, value in tree.items() if key in _OF_THE_DATASET} if isinstance(tree, dict) else None


def _values(tree: Any, seen: set[int], key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in tables and lists with the key above it, once where YAML lets many places share one."""
    if isinstance(tree, dict | list):
        if id(tree) in seen:
            return
        seen.add(id(tree))
        for name, part in tree.items() if isinstance(tree, dict) else ((key, part) for part in tree):
            if name not in _FOR_PEOPLE:
                yield str(name), None
                yield from _values(part, seen, str(name))
    else:
        yield key, tree


def _leads_out(value: str) -> bool:
    parts = re.split(r"[/\\]", value)
    return ".." in parts or re.match(r"[/\\~]|[A-Za-z]:[/\\]", value) is not None or "://" in value or "::" in value
