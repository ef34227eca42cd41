"""Configurations: JSON tables as diffusers writes them, from which networks and noise schedules are built."""

import json
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel, ValidationError

from fl_sim.errors import UserError, dotted, explain, first_error, message, quiet

P = ParamSpec("P")
T = TypeVar("T")


class ConfigError(UserError):
    """A model or scheduler configuration that cannot be built; the message is one line."""


def from_config(cls: Any, config: Mapping[str, Any], what: str, limits: type[BaseModel]) -> Any:
    """``cls.from_config(config)`` that is silent and strict; keys that start with ``_`` are ignored.

    ``limits``: a model of the keys whose values decide how much is built; the others are left to diffusers.

    Raises:
        ConfigError: if a value is beyond the limits, or diffusers refuses a value or does not know a key; the message
            starts with ``what``.
    """
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        limits.model_validate(public)
    except ValidationError as error:
        first = first_error(error)
        raise ConfigError(f"{what}.{dotted(first['loc'])} = {first['input']!r}: {first['msg']}") from error
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

    The function receives what JSON reads back: a tuple comes as a list. This is the one place where whatever a
    configuration makes a library raise becomes a ConfigError.
    """

    @cache
    def from_json(arguments: str) -> T:
        positional, named = json.loads(arguments)
        return function(*positional, **named)

    @wraps(function)
    def cached(*positional: P.args, **named: P.kwargs) -> T:
        try:
            return from_json(json.dumps([positional, named], default=dict))
        except UserError:
            raise
        except Exception as error:  # torch, diffusers and Python itself raise anything for a wrong value
            raise ConfigError(f"the configuration cannot be used: {explain(error)}") from error

    return cached
