"""No number in the arguments of an attack, a model inversion or a defence may be infinite or gigantic, also in their
tables."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from attacks.model_inversion.registry import INVERSIONS
from attacks.registry import ATTACKS
from fl_sim.defences.registry import DEFENCES
from fl_sim.errors import UserError
from fl_sim.registry import Registry

REGISTRIES: tuple[Registry[Any], ...] = (ATTACKS, INVERSIONS, DEFENCES)


def numbers(
    cls: type[BaseModel], above: tuple[str, ...] = (), wanted: tuple[type, ...] = (float,)
) -> Iterator[tuple[str, ...]]:
    """The way to every field that takes a number of one of the types that are wanted."""
    for name, field in cls.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        if set(wanted) & set(kinds):
            yield (*above, name)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from numbers(kind, (*above, name), wanted)


@pytest.mark.parametrize(("registry", "name"), [(each, name) for each in REGISTRIES for name in each.names()])
def test_no_number_is_infinite(registry: Registry[Any], name: str) -> None:
    for *tables, field in numbers(registry.find(name)):
        arguments: dict[str, Any] = {field: float("inf")}
        for table in reversed(tables):
            arguments = {table: arguments}
        with pytest.raises(UserError, match=rf"{'.'.join([*tables, field])} = inf: "):
            registry.create(name, arguments)


@pytest.mark.parametrize(("registry", "name"), [(each, name) for each in REGISTRIES for name in each.names()])
def test_no_number_is_beyond_what_is_computed_with(registry: Registry[Any], name: str) -> None:
    for *tables, field in numbers(registry.find(name), (), (int, float)):
        arguments: dict[str, Any] = {field: 10**40}
        for table in reversed(tables):
            arguments = {table: arguments}
        with pytest.raises(UserError, match=[*tables, field][0]):
            registry.create(name, arguments)
