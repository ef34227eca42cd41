"""JSON from outside, such as a file's metadata: finite numbers, and no deeper than anybody nests."""

import json
import math
from typing import Any, NoReturn

DEEPEST = 32
"""Tables and lists in one another; what comes after a reader would run out of stack long after that."""


def parse_json(text: str, finite: bool = True) -> Any:
    """What JSON reads; NaN and infinity too where numbers need not be ``finite``.

    Raises:
        ValueError: in one line, if it is not JSON, nests deeper than ``DEEPEST``, or a number in it has more digits
            than Python reads, or is NaN or infinite where numbers are to be finite.
    """
    try:
        content = json.loads(text, parse_constant=_refuse, parse_float=_finite) if finite else json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
    check_depth(content)
    return content


def check_depth(content: Any, deepest: int = DEEPEST) -> None:
    """ValueError if tables and lists in ``content`` nest deeper than ``deepest``."""
    level = [content]
    for _ in range(deepest + 1):
        level = [part for whole in level if isinstance(whole, dict | list) for part in _parts(whole)]
    if level:
        raise ValueError(f"it nests deeper than {deepest} tables and lists")


def _parts(whole: dict[str, Any] | list[Any]) -> Any:
    return whole.values() if isinstance(whole, dict) else whole


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no finite number")
