"""Every run of a sweep: what it sets, what it is called, and its seeds."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from math import prod
from typing import Any

from experiments.sweep.file import KeyPath, SweepFile, Values, flatten
from fl_sim.config import SettingsError
from fl_sim.draws import derive_seed
from fl_sim.settings_file import as_override, dotted_key

MOST_RUNS = 10_000
"""Of a sweep; every one is checked before the first begins."""
LONGEST_NAME = 100
"""Characters; file systems take 255 bytes, and a run has files below its folder."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        name: of its folder; it says what the run sets.
        varied: what it sets of the sweep's axes, in their order.
        repetition: from 1.
        seed: its public seed.
        overrides: all that is changed in the base, as ``fl-sim run --set`` takes it.
    """

    name: str
    varied: Values
    repetition: int
    seed: int
    overrides: tuple[str, ...]


def expand(sweep: SweepFile) -> list[Point]:
    """The runs of a sweep whose seeds are known, one repetition after the other.

    The seeds of a repetition are the same for all its runs, so that they differ in nothing but what varies. They are
    derived from the sweep's two roots, neither from the other (fl_sim/draws.py).

    Raises:
        SettingsError: if there are too many, two would be the same, [set] or a table of [[run]] sets what the grid
            varies, or the roots are one.
    """
    runs = sweep.repetitions * max(1, len(sweep.run)) * prod(len(values) for values in flatten(sweep.grid).values())
    if runs > MOST_RUNS:
        raise SettingsError(f"the sweep has {runs} runs; allowed: at most {MOST_RUNS}")
    if sweep.client_seed == sweep.seed:
        raise SettingsError(f"client_seed = {sweep.seed}: it is the public seed too; allowed: another number, or none")
    _check_grid_hides_nothing(sweep)
    settings = list(_settings(sweep))
    names = _names(settings, sweep.axes)
    assert sweep.client_seed is not None
    points = []
    for repetition in range(1, sweep.repetitions + 1):
        seed = derive_seed(sweep.seed, "sweep", repetition)
        private = derive_seed(sweep.client_seed, "private sweep", repetition)
        for name, varied in zip(names, settings, strict=True):
            given = flatten(sweep.set) | varied | {("seed",): seed, ("client", "seed"): private}
            overrides = tuple(as_override(path, value) for path, value in given.items())
            # Only the others are numbered, so that a sweep that is repeated more often keeps the names of its runs.
            numbered = name if repetition == 1 else f"{name},repetition-{repetition}"
            points.append(Point(numbered, varied, repetition, seed, overrides))
    return points


def _check_grid_hides_nothing(sweep: SweepFile) -> None:
    """Refuse a setting that a value of the grid, of the same key or of a table around it, would replace."""
    grid = flatten(sweep.grid)
    for place, table in [("set", sweep.set), *((f"run {number}", table) for number, table in enumerate(sweep.run, 1))]:
        for path in flatten(table):
            for length in range(1, len(path) + 1):
                if path[:length] in grid:
                    around = dotted_key(path[:length])
                    raise SettingsError(
                        f"{place}: {dotted_key(path)} is in [grid] too, by {around}; allowed: one of them"
                    )


def _settings(sweep: SweepFile) -> Iterator[Values]:
    """What each run sets of the axes, in their order."""
    grid = flatten(sweep.grid)
    for table in sweep.run or ({},):
        own = flatten(table)
        for combination in product(*grid.values()):
            given = own | dict(zip(grid, combination, strict=True))
            yield {path: given[path] for path in sweep.axes if path in given}


def _names(settings: Sequence[Values], axes: Sequence[KeyPath]) -> list[str]:
    """A name for each run that depends on nothing but what it sets, and on what the axes are called."""
    keys = _short_keys(axes)
    names, digests = [_name(varied, keys) for varied in settings], [_digest(varied) for varied in settings]
    alike = Counter(digests)
    for name, digest in zip(names, digests, strict=True):
        if (count := alike[digest]) > 1:
            raise SettingsError(f"{name}: {count} runs of the sweep set the same; allowed: each once, and repetitions")
    # On some file systems capital letters are no others.
    often = Counter(name.casefold() for name in names)
    return [
        f"{name}-{digest}" if often[name.casefold()] > 1 else name for name, digest in zip(names, digests, strict=True)
    ]


def _name(varied: Values, keys: dict[KeyPath, str]) -> str:
    parts = {path: _plain(value) for path, value in varied.items()}
    name = ",".join(f"{keys[path]}={part}" for path, part in parts.items()) or "base"
    faithful = len(name) <= LONGEST_NAME and all(_is_faithful(varied[path], part) for path, part in parts.items())
    return name if faithful else f"{name[:LONGEST_NAME]}-{_digest(varied)}"


def _short_keys(axes: Sequence[KeyPath]) -> dict[KeyPath, str]:
    """What a name calls each setting: its last part, of a ``name`` the part before; the whole key if two are alike."""
    short = {path: path[-2] if path[-1] == "name" and len(path) > 1 else path[-1] for path in axes}
    often = Counter(short.values())
    return {path: _plain(key if often[key] == 1 else ".".join(path)) for path, key in short.items()}


def _plain(value: Any) -> str:
    """The value in characters that every file system takes."""
    if isinstance(value, list):
        return "-".join(map(_plain, value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "".join(character if character in _PLAIN else "-" for character in text)


def _is_faithful(value: Any, plain: str) -> bool:
    """Whether the value can be read from its plain text."""
    if isinstance(value, list):
        return all(isinstance(part, int | str) and _is_faithful(part, _plain(part)) for part in value)
    return isinstance(value, bool) or str(value) == plain


def _digest(varied: Values) -> str:
    return sha256("\n".join(as_override(path, value) for path, value in varied.items()).encode()).hexdigest()[:8]
