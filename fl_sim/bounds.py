"""How large the numbers in arguments of attacks and defences may be."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

LARGEST = 1e30
"""Far beyond any use; float32, into which torch converts learning rates, ends at 3e38."""


def check_numbers(value: Any) -> Any:
    """``value``, a number or anything that holds numbers; pydantic's error if one is beyond 1e30 in magnitude."""
    if isinstance(value, int | float) and abs(value) > LARGEST:
        raise PydanticCustomError("too_large", "allowed: numbers up to 1e30")
    if isinstance(value, Mapping):
        check_numbers(value.values())
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for each in value:
            check_numbers(each)
    return value
