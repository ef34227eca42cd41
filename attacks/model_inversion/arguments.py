"""Tables of arguments: what is given in part keeps the rest of its default."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from fl_sim.bounds import check_numbers


class Arguments(BaseModel):
    """A table whose fields may be tables with defaults of their own.

    Of such a field only some keys may be given: the others are those of the field's default, not of its class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    _check_numbers = field_validator("*")(check_numbers)

    @model_validator(mode="before")
    @classmethod
    def _keep_the_rest(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        complete = dict(given)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, BaseModel) and isinstance(given.get(name), Mapping):
                complete[name] = field.default.model_dump() | given[name]
        return complete


def merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``defaults`` with what is given in their place, table by table.

    >>> merge({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}})
    {'a': 1, 'b': {'c': 4, 'd': 3}}
    """
    merged = {**defaults, **given}
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = merge(value, merged[key])
    return merged
