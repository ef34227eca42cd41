"""Classes by name: those built in, those of entry points, or any by its dotted path ``package.module:Class``.

It imports nothing of the project but fl_sim/errors.py.
"""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from fl_sim.errors import UserError, dotted, explain, first_error, nearest, one_line

Kind = TypeVar("Kind", bound=BaseModel)


def import_by_path(path: str) -> Any:
    """The attribute at ``package.module:attribute``.

    Raises:
        ImportError: in one line, whatever the module raises while it is imported.
    """
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever a stranger's module does while it is imported
        raise ImportError(one_line(f"cannot be imported: {type(error).__name__}: {error}")) from error


class Registry(Generic[Kind]):
    """The classes of one kind; each is a pydantic model whose fields are its arguments.

    Args:
        kind: what they are called in messages, such as ``attack``.
        base: their base class.
        built_in: paths by name; they come before those of the entry points.
        group: of entry points.
        error: what is raised.
        arguments: where a table of settings keeps the arguments of the class called ``{name}``.
    """

    def __init__(
        self,
        kind: str,
        base: type[Kind],
        built_in: Mapping[str, str],
        group: str,
        error: type[UserError],
        arguments: str = "args",
    ) -> None:
        self.kind, self.base, self.built_in, self.group, self.error = kind, base, dict(built_in), group, error
        self._arguments = arguments

    def names(self) -> list[str]:
        """Names of all that are registered, sorted."""
        return sorted({**plugins(self.group), **self.built_in})

    def find(self, name: str, table: str | None = None) -> type[Kind]:
        """The class called ``name``, or at that path.

        ``table``: the table of settings, such as "attack", that error messages name.

        Raises:
            UserError: if there is none, with the nearest name, or no such class at the path, with the reason.
        """
        subject = f"{self.kind} {name!r}" if table is None else f"{table}.name = {name!r}"
        path = name if ":" in name else {**plugins(self.group), **self.built_in}.get(name)
        if path is None:
            available = self.names()
            raise self.error(f"{subject}: unknown; available: {', '.join(available)}{nearest(name, available)}")
        try:
            found = import_by_path(path)
        except ImportError as error:
            raise self.error(f"{subject}: {error}") from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise self.error(f"{subject}: no subclass of {self.base.__module__}.{self.base.__name__}")
        if inspect.isabstract(found):
            raise self.error(f"{subject}: abstract, it lacks {', '.join(sorted(found.__abstractmethods__))}")
        return found

    def create(self, name: str, arguments: Mapping[str, Any] | None = None, table: str | None = None) -> Kind:
        """An object of the class called ``name`` with these arguments.

        ``table``: the table of settings, such as "attack", that error messages name.

        Raises:
            UserError: as ``find``, or naming the argument that is wrong and what is allowed.
        """
        cls = self.find(name, table)
        where = f"{self.kind} {name!r}: " if table is None else f"{table}.{self._arguments.format(name=name)}."
        for key, value in _loose_booleans(cls, arguments or {}):
            raise self.error(f"{where}{key} = {str(value).lower()}: neither true nor false is allowed here")
        try:
            return cls(**(arguments or {}))
        except ValidationError as error:
            first = first_error(error)
            key = where + dotted(first["loc"])
            if first["type"] == "missing":
                raise self.error(f"{key} is not set; {self.kind} {name!r} needs it") from error
            problem = first["msg"]
            if first["type"] == "extra_forbidden":
                taken = _fields_at(cls, first["loc"][:-1])
                hint = nearest(str(first["loc"][-1]), taken)
                problem = f"unknown argument; {name} takes: {', '.join(taken) or 'none'}{hint}"
            raise self.error(f"{key} = {first['input']!r}: {problem}") from error
        except UserError:
            raise
        except Exception as error:  # whatever a plug-in raises
            raise self.error(f"{self.kind} {name!r} failed: {explain(error)}") from error


def _loose_booleans(cls: type[BaseModel], given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Dotted key and value of every true and false that is no switch; pydantic would take it for a number."""
    for key, value in given.items():
        tables = [kind for kind in _kinds(cls, key) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if tables and isinstance(value, Mapping):
            yield from _loose_booleans(tables[0], value, f"{prefix}{key}.")
        elif not _is_switch(cls, key):
            parts = value if isinstance(value, list | tuple) else [value]
            yield from ((f"{prefix}{key}", part) for part in parts if isinstance(part, bool))


def _kinds(cls: type[BaseModel], key: str) -> tuple[Any, ...]:
    """The type of a field and those that it is made of; none where there is no such field."""
    annotation = cls.model_fields[key].annotation if key in cls.model_fields else None
    return () if annotation is None else (annotation, *get_args(annotation))


def _is_switch(cls: type[BaseModel], key: str) -> bool:
    """Whether the field may be true or false; so may one that is not there, which is refused for that."""
    kinds = _kinds(cls, key)
    return not kinds or Any in kinds or bool in kinds


def _fields_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model at that place."""
    for name in location:
        kind = cls.model_fields[str(name)].annotation
        assert isinstance(kind, type)
        cls = kind
    return list(cls.model_fields)


@cache
def plugins(group: str) -> dict[str, str]:
    """Paths by name of the entry points of a group, read once."""
    return {entry.name: entry.value for entry in entry_points(group=group)}
