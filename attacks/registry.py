"""Attacks by name.

A new one is registered with an entry point of group ``fl_sim.attacks`` from another package, or in ``_BUILT_IN`` here.
"""

import difflib
import importlib
import inspect
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from attacks.attack import Attack, AttackError

_BUILT_IN = {
    "dlg": "attacks.published.dlg:DLG",
    "gidm": "attacks.published.gidm:GIDM",
    "gidm-plus": "attacks.published.gidm_plus:GIDMPlus",
    "inverting-gradients": "attacks.published.inverting_gradients:InvertingGradients",
    "residual": "attacks.residual.attack:Residual",
}


@cache
def _plugins() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group="fl_sim.attacks")}


def available() -> list[str]:
    """Names of all registered attacks, built in or from entry points, sorted."""
    return sorted({**_plugins(), **_BUILT_IN})


def attack_class(name: str, table: str | None = None) -> type[Attack]:
    """The attack registered under ``name``, or at the dotted path ``package.module:Class``.

    ``table``: of settings, such as "attack", from which the name came and which errors are to speak of.

    Raises:
        AttackError: with the nearest name if there is none, or the reason why there is no attack at the path.
    """
    subject = f"attack {name!r}" if table is None else f"{table}.name = {name!r}"
    location = name if ":" in name else {**_plugins(), **_BUILT_IN}.get(name)
    if location is None:
        near = difflib.get_close_matches(name, available(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttackError(f"{subject}: unknown; available: {', '.join(available())}{hint}")
    module, _, attribute = location.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a stranger's module does while it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise AttackError(f"{subject}: cannot be imported: {reason}") from error
    if not (isinstance(found, type) and issubclass(found, Attack)):
        raise AttackError(f"{subject}: no subclass of attacks.attack.Attack")
    if inspect.isabstract(found):
        raise AttackError(f"{subject}: abstract, it lacks {', '.join(sorted(found.__abstractmethods__))}")
    return found


def create(name: str, arguments: dict[str, Any] | None = None, table: str | None = None) -> Attack:
    """The attack ``name`` with its arguments; AttackError names the argument that is wrong and what is allowed.

    ``table``: of settings, such as "attack", from which all this came and which errors are to speak of.
    """
    cls = attack_class(name, table)
    try:
        return cls(**(arguments or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = f"attack {name!r}: " if table is None else f"{table}.args.{name}."
        key = where + ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise AttackError(f"{key} is not set, and has no default") from error
        allowed = f"; arguments: {', '.join(cls.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise AttackError(f"{key} = {first['input']!r}: {first['msg']}{allowed}") from error
