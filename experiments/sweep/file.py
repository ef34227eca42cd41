"""The file of a sweep: what stays, what varies, how often it is repeated."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, ValidationError, field_validator

from experiments.settings import SWEEPS, preset_names
from fl_sim.config import Section, Seed, SettingsError
from fl_sim.errors import dotted, first_error, nearest, one_line
from fl_sim.settings_file import dotted_key, parse_overrides, read_toml

KeyPath = tuple[str, ...]
"""The names of a dotted key."""

Values = dict[KeyPath, Any]
"""Settings by their paths."""

ROOTS: dict[KeyPath, str] = {("seed",): "seed", ("client", "seed"): "client_seed"}
"""The settings that a sweep derives, and the key of its file that each is derived from."""


class SweepFile(Section):
    """A sweep, as its file has it.

    Attributes:
        base: a preset, or a file of settings; a path is relative to the sweep's file.
        seed: public root of the runs' ``seed``.
        client_seed: private root of their ``client.seed``, drawn by the system if it is unset.
        repetitions: how often every point is run, each time with other seeds.
        set: settings of every run, over those of the base.
        grid: lists of values; every combination is run.
        run: tables of settings; each is run, with every combination of the grid.
    """

    base: str = Field(min_length=1)
    seed: Seed = 0
    client_seed: Seed | None = None
    repetitions: int = Field(1, ge=1, le=10_000, strict=True)
    set: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(default_factory=dict)
    run: tuple[dict[str, Any], ...] = ()

    @field_validator("set", "grid", "run")
    @classmethod
    def _keys_are_of_settings(cls, tables: Any) -> Any:
        for table in _each(tables):
            entries = _entries(table)
            paths = [path for path, _ in entries]
            for path, value in entries:
                if within := [other for other in paths if other[: len(path)] == path][1:]:
                    raise ValueError(f"{dotted_key(path)} is set twice, by {dotted_key(within[-1])} too")
                if len(path) == 1 and isinstance(value, list) and any(isinstance(part, dict) for part in value):
                    raise ValueError(f"{path[0]}: a whole section; allowed: {path[0]}.key = [...] of its settings")
        return tables

    @field_validator("set", "grid", "run")
    @classmethod
    def _seeds_are_derived(cls, tables: Any) -> Any:
        for table in _each(tables):
            for path in flatten(table):
                if path in ROOTS:
                    raise ValueError(
                        f"{dotted_key(path)} follows from the sweep's own {ROOTS[path]}; allowed: that key at the top "
                        "of the file, and repetitions"
                    )
        return tables

    @field_validator("grid")
    @classmethod
    def _grid_is_of_lists(cls, grid: dict[str, Any]) -> dict[str, Any]:
        for path, values in flatten(grid).items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{dotted_key(path)} = {values!r}: allowed: a list of values")
        return grid

    @property
    def axes(self) -> list[KeyPath]:
        """The settings that vary, in the order of the file: those of the runs, then those of the grid."""
        return list(dict.fromkeys([*(path for run in self.run for path in flatten(run)), *flatten(self.grid)]))

    def to_toml(self) -> str:
        """A file that is read as the same sweep."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def sweep_names() -> list[str]:
    """The sweeps that come with the package, sorted."""
    return sorted(file.stem for file in SWEEPS.glob("*.toml"))


def load_sweep(preset_or_file: str, overrides: Sequence[str] = ()) -> SweepFile:
    """The sweep of this name, or of this file (a name with a suffix or a slash), its base a preset or absolute.

    ``overrides`` are settings of every run, as ``key=value``, over those that the file sets.

    Raises:
        SettingsError: if there is none, or something in it is wrong, or an override sets what varies.
    """
    path = _find(preset_or_file)
    sweep = _validated(path, read_toml(path))
    for key in flatten(parse_overrides(overrides)):
        if key in sweep.axes:
            raise SettingsError(f"--set {dotted_key(key)}: it varies in the sweep; allowed: a setting that does not")
    tables = sweep.model_dump() | {
        "base": _base(sweep.base, path.parent),
        "set": parse_overrides(overrides, sweep.set),
    }
    return _validated(path, tables)


def _validated(path: Path, tables: Mapping[str, Any]) -> SweepFile:
    try:
        return SweepFile.model_validate(tables)
    except ValidationError as error:
        raise SettingsError(f"{path}: {_describe(error)}") from error


def flatten(tree: Mapping[str, Any]) -> Values:
    """The values in nested tables by their paths; an empty table is a value.

    A dotted key in quotes, ``"client.lr" = 1``, is the same as ``client.lr = 1``.
    """
    return dict(_entries(tree))


def _each(tables: dict[str, Any] | Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The tables of a field that holds one, or several."""
    return [tables] if isinstance(tables, dict) else tables


def _entries(tree: Mapping[str, Any]) -> list[tuple[KeyPath, Any]]:
    return [((*name.split("."), *path), value) for name, part in tree.items() for path, value in _leaves(part)]


def _leaves(part: Any) -> Iterator[tuple[KeyPath, Any]]:
    if not isinstance(part, Mapping) or not part:
        yield (), part
        return
    for name, below in part.items():
        for path, value in _leaves(below):
            yield (name, *path), value


def _find(preset_or_file: str) -> Path:
    path = _at_home(preset_or_file)
    if path.suffix or path.name != preset_or_file:
        return path
    if preset_or_file in sweep_names():
        return SWEEPS / f"{preset_or_file}.toml"
    raise SettingsError(
        f"sweep {preset_or_file!r} is unknown; available: {', '.join(sweep_names())}, or a "
        f"FILE.toml{nearest(preset_or_file, sweep_names())}"
    )


def _at_home(name: str) -> Path:
    """The path, in which ``~`` is the home folder; SettingsError if it is nobody's."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise SettingsError(f"{name}: {error}") from error


def _base(base: str, folder: Path) -> str:
    if base in preset_names():
        return base
    if (path := _at_home(base)).suffix or path.name != base:
        return str((folder / path).absolute())
    raise SettingsError(
        f"base = {base!r}: no such preset; allowed: {', '.join(preset_names())}, or a "
        f"FILE.toml{nearest(base, preset_names())}"
    )


def _describe(error: ValidationError) -> str:
    first = first_error(error)
    key = dotted(first["loc"])
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}"
    allowed = list(SweepFile.model_fields)
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed: {', '.join(allowed)}{nearest(key, allowed)}"
    if first["type"] == "missing":
        return f"{key} is not set; allowed: a preset ({', '.join(preset_names())}), or a FILE.toml"
    return f"{key} = {one_line(repr(first['input']), 80)}: {first['msg']}"
