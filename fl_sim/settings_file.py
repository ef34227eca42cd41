"""Settings from TOML and ``key=value`` overrides, and back.

A mistake is one line: the key, its value and what is allowed.
"""

import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from errno import EINVAL
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fl_sim.config import BROUGHT_BY_CHECKPOINT, NO_CHECKPOINT, Settings, SettingsError, defaults_of
from fl_sim.errors import first_error, nearest
from fl_sim.network.json_text import DEEPEST, check_depth
from fl_sim.setting_layers import Tree, drop_void, remove

S = TypeVar("S", bound=Settings)

LARGEST_TOML = 2**22
"""Bytes of a file; a hundred thousand clients named one by one take a sixth."""


def load_settings(
    cls: type[S], source: Path | Mapping[str, Any], overrides: Sequence[str] = (), recorded: bool = False
) -> S:
    """Settings of class ``cls`` from a TOML file or a nested mapping, with ``key=value`` overrides applied in order.

    A key is dotted (``client.batch_size``); a value is parsed as TOML and, where that fails, taken as a string. What
    does not go together is dropped or refused as fl_sim/setting_layers.py says. Of what a run has ``recorded`` nothing
    void is refused.

    Raises:
        SettingsError: naming the key, its value and what is allowed, with the nearest name where one is close.
    """
    file = read_toml(source) if isinstance(source, Path) else deepcopy(dict(source))
    given = _with_overrides({}, overrides)
    kept = cls.without_outlived_arguments(file, given)
    tree = _with_overrides(kept, overrides)
    tree, refusals = drop_void(tree, kept, given, defaults_of(cls, str(tree.get("task"))), cls.void)
    _refuse_nan(tree)
    _refuse_loose_types(cls, tree)
    try:
        settings = cls.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_describe(cls, tree, first_error(error))) from error
    if refusals and not recorded:
        raise SettingsError(refusals[0])
    return settings


def parse_overrides(overrides: Sequence[str], onto: Tree | None = None) -> Tree:
    """The nested tables of ``key=value`` overrides, applied in order; key and value as in ``load_settings``.

    ``onto``: tables in which they are set, which stay as they are.

    Raises:
        SettingsError: if one is no ``key=value``.
    """
    return _with_overrides(onto or {}, overrides)


def dump_toml(settings: Settings) -> str:
    """The settings as TOML that ``load_settings`` reads back unchanged; what is unset or void is left out."""
    tree = settings.model_dump(mode="json", exclude_none=True)
    defaults = defaults_of(type(settings), settings.task)
    void = [key for rule in settings.void if rule.applies(tree, defaults) for key in rule.keys]
    if settings.model.checkpoint != NO_CHECKPOINT:
        given = {f"model.{name}" for name in settings.model.model_fields_set}
        void += [key for key in BROUGHT_BY_CHECKPOINT if key not in given]
    for key in void:
        remove(tree, key)
    return tomli_w.dumps(tree)


def as_override(path: Sequence[str], value: Any) -> str:
    """The ``key=value`` that ``load_settings`` reads as that value, of TOML's types, at that path of names.

    >>> as_override(("attack", "args", "my.package:Attack", "depth"), [1, 2])
    'attack.args."my.package:Attack".depth=[1, 2]'
    """
    return f"{dotted_key(path)}={toml_value(value)}"


def dotted_key(path: Sequence[str]) -> str:
    """The names of a path as a dotted key of TOML; those that are no bare keys stand in quotes."""
    return ".".join(tomli_w.dumps({name: 0}).removesuffix(" = 0\n") for name in path)


def toml_value(value: Any) -> str:
    """The value as TOML has it behind an equals sign, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{dotted_key([name])} = {toml_value(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip("\n")


def read_toml(path: Path) -> Tree:
    """The tables of a TOML file; SettingsError if it cannot be read or is none."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # reading a pipe would wait without end
            raise OSError(EINVAL, "no regular file")
        if path.stat().st_size > LARGEST_TOML:
            raise SettingsError(f"{path}: larger than {LARGEST_TOML >> 20} MiB, which no settings are")
        return _parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error


def _parse_toml(text: str) -> Tree:
    """The tables; ValueError if it is no TOML, nests too deep, or a number has more than TOML's 64 bits."""
    try:
        tree = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
    check_depth(tree)
    _refuse_long_numbers(tree)
    return tree


def _refuse_long_numbers(value: Any) -> None:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _refuse_long_numbers(part)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a number does not fit into 64 bits")


def _with_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """The tree with every ``key=value`` set in it."""
    changed = deepcopy(tree)
    for override in overrides:
        _apply(changed, override)
    return changed


def _apply(tree: Tree, override: str) -> None:
    """Set one ``key=value`` in a tree of tables, in place, making the tables on the way."""
    key, equals, text = override.partition("=")
    path = parse_key(key)
    if not equals or not all(path) or len(path) > DEEPEST:
        raise SettingsError(f"override {override!r}: expected key=value, such as client.batch_size=4")
    *tables, leaf = path
    for depth, name in enumerate(tables):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"override {override!r}: {'.'.join(path[: depth + 1])} is a value, not a table")
    tree[leaf] = _parse_value(text.strip())


def parse_key(key: str) -> list[str]:
    """The names in a dotted key; a name with dots in it stands in quotes, as in TOML."""
    try:
        table = _parse_toml(f"{key} = 0")
    except ValueError:
        return [part.strip() for part in key.split(".")]
    path: list[str] = []
    while isinstance(table, dict) and len(table) == 1:
        [(name, table)] = table.items()
        path.append(name)
    return path if table == 0 else [""]  # a comment or a line break in the key


def _parse_value(text: str) -> Any:
    try:
        parsed = _parse_toml(f"value = {text}")
    except ValueError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _refuse_nan(tree: Mapping[str, Any], prefix: str = "") -> None:
    """No setting means anything as NaN, not even where its type allows it."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            _refuse_nan(value, f"{prefix}{name}.")
        elif any(
            isinstance(part, float) and math.isnan(part) for part in (value if isinstance(value, list) else [value])
        ):
            raise SettingsError(f"{prefix}{name} = {value!r}: not a number")


def _refuse_loose_types(cls: type[BaseModel], tree: Mapping[str, Any], prefix: str = "") -> None:
    """A switch is true or false, and these are no numbers; pydantic would take one for the other."""
    for name, value in tree.items():
        kind = cls.model_fields[name].annotation if name in cls.model_fields else None
        if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, Mapping):
            _refuse_loose_types(kind, value, f"{prefix}{name}.")
        elif kind is bool and not isinstance(value, bool):
            raise SettingsError(f"{prefix}{name} = {value!r}: allowed: true or false")
        elif kind is not None and kind is not bool and isinstance(value, bool):
            raise SettingsError(f"{prefix}{name} = {str(value).lower()}: neither true nor false is allowed here")


def _describe(cls: type[Settings], tree: Tree, error: ErrorDetails) -> str:
    """One line for one of pydantic's errors in a tree of settings."""
    key, value = _key_at(tree, error["loc"]), error["input"]
    if error["type"] == "value_error":
        # A table's own check names its keys itself.
        reason = str(error["ctx"]["error"])
        return reason if isinstance(value, dict | BaseModel) else f"{key} = {value!r}: {reason}"
    if error["type"] == "extra_forbidden":
        while isinstance(value, dict) and value:  # the key as it was typed: no.such = 1, not no = {'such': 1}
            name, value = next(iter(value.items()))
            key = f"{key}.{name}"
        siblings = ", ".join(_model_at(cls, error["loc"][:-1]).model_fields)
        return f"{key} = {value!r}: unknown setting; allowed here: {siblings}{nearest(key, _keys(cls))}"
    if error["type"] == "model_type":
        fields = ", ".join(f"{key}.{name}" for name in _model_at(cls, error["loc"]).model_fields)
        return f"{key} = {value!r}: a table, not a value; allowed in it: {fields}"
    choices = re.findall(r"'([^']*)'", error["ctx"]["expected"]) if error["type"] == "literal_error" else ()
    reason = error["msg"].replace("valid tuple", "list").replace("path for <class 'pathlib.Path'>", "path")
    return f"{key} = {value!r}: {reason}{nearest(str(value), choices)}"


def _key_at(tree: Tree, location: tuple[int | str, ...]) -> str:
    """The dotted key of a place in the tree; pydantic goes on with the types that it tried there."""
    key: list[str] = []
    found: Any = tree
    for part in location:
        if not isinstance(found, dict) or part not in found:
            break
        found = found[part]
        key.append(str(part))
    return ".".join(key)


def _keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, tables included."""
    for name, field in cls.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")


def _model_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for name in location:
        annotation = cls.model_fields[str(name)].annotation
        assert isinstance(annotation, type)
        cls = annotation
    return cls
