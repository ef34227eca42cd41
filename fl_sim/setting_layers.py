"""Settings in two layers: a preset or file, and what ``--set`` changes in it.

Where settings do not go together, the layer decides:

- Arguments belong to the name that they came with. The file's do not outlive an override that chooses another name.
- A setting that the choice of another one makes void is refused where an override gives it, and where the file
  contradicts itself. It is dropped where only an override made it void. A file may repeat a default.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

Tree = dict[str, Any]
"""Nested tables of settings, as TOML has them."""

_ABSENT = object()


@dataclass(frozen=True)
class Void:
    """What the value of one setting makes meaningless.

    Attributes:
        selector: dotted key of the setting that decides.
        holds: whether that value of it makes the others void.
        keys: dotted keys of the others.
        because: why, to follow "with <selector> = <value>".
        instead: the choice of ``selector`` under which they count.
        only_with: dotted keys of other settings, with the values that they must have for this to hold.
    """

    selector: str
    holds: Callable[[Any], bool]
    keys: tuple[str, ...]
    because: str
    instead: str
    only_with: Mapping[str, Any] = field(default_factory=dict)

    def applies(self, tree: Tree, defaults: Tree) -> bool:
        """Whether ``keys`` are void in the tree, in which absent settings have their ``defaults``."""
        return self.holds(self.selected(tree, defaults)) and all(
            look_up(tree, key, look_up(defaults, key)) == value for key, value in self.only_with.items()
        )

    def selected(self, tree: Tree, defaults: Tree) -> Any:
        """The value of ``selector``."""
        return look_up(tree, self.selector, look_up(defaults, self.selector))

    def refusal(self, key: str, value: Any, selected: Any) -> str:
        """One line for the ``value`` of ``key``, given although ``selector`` is ``selected``."""
        return (
            f"{key} = {value!r}: with {self.selector} = {selected!r} {self.because}; allowed: unset, or {self.instead}"
        )


def look_up(tree: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of a dotted key, ``default`` where the tree has none."""
    found: Any = tree
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return default
        found = found[name]
    return found


def fill_in(tree: Tree, defaults: Tree) -> Tree:
    """The tree, and what it lacks from ``defaults``; tables are filled in likewise."""
    tables = {name: table for name, table in defaults.items() if isinstance(tree.get(name), dict)}
    return defaults | tree | {name: fill_in(tree[name], table) for name, table in tables.items()}


def has(tree: Mapping[str, Any], key: str) -> bool:
    """Whether the tree has a value for a dotted key."""
    return look_up(tree, key, _ABSENT) is not _ABSENT


def remove(tree: Tree, key: str) -> None:
    """Take a dotted key out of the tree, in place; harmless where it is not there."""
    table, _, name = key.rpartition(".")
    parent = look_up(tree, table) if table else tree
    if isinstance(parent, dict):
        parent.pop(name, None)


def drop_arguments(file: Tree, given: Tree, defaults: Tree, names: Mapping[str, str]) -> Tree:
    """``file`` without the arguments whose name ``given`` changes; ``names``: key of a name -> key of its arguments."""
    kept = deepcopy(file)
    for name, arguments in names.items():
        before = look_up(file, name, look_up(defaults, name))
        if look_up(given, name, before) != before:
            remove(kept, arguments)
    return kept


def drop_void(tree: Tree, file: Tree, given: Tree, defaults: Tree, rules: Sequence[Void]) -> tuple[Tree, list[str]]:
    """``tree``, which is ``given`` over ``file``, without what is void in it, and a line for all that must be refused.

    Refused is what an override gave, and what the file gave beside the very choice that makes it void.
    """
    kept, refusals = deepcopy(tree), []
    for rule in rules:
        if not rule.applies(tree, defaults):
            continue
        files_own = rule.applies(file, defaults)
        for key in rule.keys:
            if not has(tree, key):
                continue
            value = look_up(tree, key)
            if has(given, key) or (files_own and value != look_up(defaults, key)):
                refusals.append(rule.refusal(key, value, rule.selected(tree, defaults)))
            remove(kept, key)
    return kept, refusals
