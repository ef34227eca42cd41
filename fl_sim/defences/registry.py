"""Defences by name: those built in, those of entry points ``fl_sim.defences``, or any by its dotted path."""

import importlib
import inspect
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from fl_sim.config import SettingsError, nearest
from fl_sim.defences.defence import Defence

_BUILT_IN = {
    "none": "fl_sim.defences.defence:NoDefence",
    "clip-noise": "fl_sim.defences.clip_noise:ClipNoise",
    "dp-sgd": "fl_sim.defences.dp_sgd:DPSGD",
    "secure-aggregation": "fl_sim.defences.secure_aggregation:SecureAggregation",
    "signs": "fl_sim.defences.signs:Signs",
    "stochastic-quantisation": "fl_sim.defences.stochastic_quantisation:StochasticQuantisation",
    "top-k": "fl_sim.defences.top_k:TopK",
    "unshared-time-mlp": "fl_sim.defences.unshared_time_mlp:UnsharedTimeMLP",
}


@cache
def _plugins() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group="fl_sim.defences")}


def available() -> list[str]:
    """Names of all registered defences, built in or from entry points, sorted."""
    return sorted({**_plugins(), **_BUILT_IN})


def defence_class(name: str, table: str | None = None) -> type[Defence]:
    """The defence registered under ``name``, or at the dotted path ``package.module:Class``.

    ``table``: of settings, such as "defence", from which the name came and which errors are to speak of.

    Raises:
        SettingsError: with the nearest name if there is none, or the reason why there is no defence at the path.
    """
    subject = f"defence {name!r}" if table is None else f"{table}.name = {name!r}"
    location = name if ":" in name else {**_plugins(), **_BUILT_IN}.get(name)
    if location is None:
        raise SettingsError(f"{subject}: unknown; available: {', '.join(available())}{nearest(name, available())}")
    module, _, attribute = location.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a stranger's module does while it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingsError(f"{subject}: cannot be imported: {reason}") from error
    if not (isinstance(found, type) and issubclass(found, Defence)):
        raise SettingsError(f"{subject}: no subclass of fl_sim.defences.defence.Defence")
    if inspect.isabstract(found):
        raise SettingsError(f"{subject}: abstract, it lacks {', '.join(sorted(found.__abstractmethods__))}")
    return found


def create(name: str, arguments: Mapping[str, Any] | None = None, table: str | None = None) -> Defence:
    """The defence ``name`` with its arguments; SettingsError names the argument that is wrong and what is allowed.

    ``table``: of settings, such as "defence", from which all this came and which errors are to speak of.
    """
    cls = defence_class(name, table)
    try:
        return cls(**(arguments or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = f"defence {name!r}: " if table is None else f"{table}.args."
        key = where + ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise SettingsError(f"{key} is not set; defence {name!r} needs it") from error
        problem = first["msg"][0].lower() + first["msg"][1:]
        if first["type"] == "extra_forbidden":
            taken = ", ".join(cls.model_fields) or "none"
            problem = f"unknown argument; {name} takes: {taken}{nearest(str(first['loc'][-1]), cls.model_fields)}"
        raise SettingsError(f"{key} = {first['input']!r}: {problem}") from error
