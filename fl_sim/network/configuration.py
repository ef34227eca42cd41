"""Configurations: JSON tables as diffusers writes them, from which networks and noise schedules are built."""

import json
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from fl_sim.errors import UserError, message, quiet

P = ParamSpec("P")
T = TypeVar("T")


class ConfigError(UserError):
    """A model or scheduler configuration that cannot be built; the message is one line."""


def from_config(cls: Any, config: Mapping[str, Any], what: str) -> Any:
    """``cls.from_config(config)`` that is silent and strict; keys that start with ``_`` are ignored.

    Raises:
        ConfigError: if diffusers refuses a value or does not know a key; the message starts with ``what``.
    """
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with quiet("diffusers"):
            built, unused = cls.from_config(public, return_unused_kwargs=True)
    except Exception as error:  # diffusers raises any exception for a wrong value
        raise ConfigError(f"{what} configuration cannot be built: {message(error)}") from error
    if unused:
        raise ConfigError(f"{what} configuration has unknown keys: {', '.join(sorted(unused))}")
    return built


def cached_by_value(function: Callable[P, T]) -> Callable[P, T]:
    """``functools.cache`` for arguments that JSON can write, such as configurations, which are not hashable.

    The function receives what JSON reads back: a tuple comes as a list.
    """

    @cache
    def from_json(arguments: str) -> T:
        positional, named = json.loads(arguments)
        return function(*positional, **named)

    @wraps(function)
    def cached(*positional: P.args, **named: P.kwargs) -> T:
        return from_json(json.dumps([positional, named], default=dict))

    return cached
