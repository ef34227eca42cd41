"""Errors that a user can cause and correct: one base class, and functions that word its messages.

It imports nothing of the project, so that every package may use it.
"""

import difflib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from pydantic_core import ErrorDetails


class UserError(ValueError):
    """Bad input. The message is one line that names what is wrong, its value and what is allowed."""


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Keep a library from logging warnings meanwhile: what comes of them is said in one line."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def one_line(text: object, most: int = 300) -> str:
    """The text with all white space made single blanks, cut at ``most`` characters."""
    return " ".join(str(text).split())[:most]


def printable(text: object, most: int = 4000) -> str:
    """The text with line breaks, escape sequences and the like written out, so that a terminal shows it as one line.

    What is longer than ``most`` characters, such as a value that somebody made of a million digits, loses its middle.
    """
    whole = str(text)
    if len(whole) > most:
        whole = f"{whole[: most // 2]} … {whole[-most // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in whole)


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable_page(text: str) -> str:
    """The text, of several lines, with escape sequences and marks that turn its direction written out."""
    return _CONTROLS.sub(lambda found: printable(found[0]), text)


@contextmanager
def plugged_in(what: str) -> Iterator[None]:
    """Whatever a plug-in raises meanwhile is a UserError of one line, which says ``what`` failed."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} failed: {explain(error)}") from error


def message(error: BaseException) -> str:
    """The message of an exception in one line; the name of its class if it has none."""
    return one_line(error) or type(error).__name__


def explain(error: BaseException) -> str:
    """The same with the name of its class in front, unless it is about a value that somebody gave."""
    return message(error) if isinstance(error, ValueError) else one_line(f"{type(error).__name__}: {error}")


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the one of ``names`` that is close to ``name``, to end a message; else nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_error(error: ValidationError) -> ErrorDetails:
    """The first of pydantic's errors, its message beginning with a small letter to follow a colon."""
    first = error.errors()[0]
    return first | {"msg": first["msg"][:1].lower() + first["msg"][1:]}


def dotted(location: Iterable[int | str]) -> str:
    """The place of one of pydantic's errors as a dotted key."""
    return ".".join(map(str, location))
