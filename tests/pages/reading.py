"""Somebody does what a page prints, in order, in one folder, and compares what comes with what is shown."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import count
from pathlib import Path

from tests.pages.clusters import Cluster
from tests.pages.pages import Item, Page
from tests.pages.stand_ins import ABSOLUTE, FILES, MODULES

NAMED = {
    ("fl-sim", "run"),
    ("fl-sim", "attack"),
    ("fl-sim", "report"),
    ("fl-sim", "sweep"),
    ("fl-sim", "watch"),
    ("fl-sim", "list"),
    ("fl-sim", "train-prior"),
    ("flwr", "run"),
}
"""In a sentence these are the names of commands, of which there is to be a help; nothing is run."""


@dataclass(frozen=True)
class Outcome:
    """What came of a line; the page's folder is left out of what was printed."""

    exit_code: int = 0
    output: str = ""
    errors: str = ""


class NoRuleError(LookupError):
    """Nothing says how to run a line."""


@dataclass
class Reader:
    """Somebody who goes through a page, line by line, in a folder that is also the home directory."""

    page: Page
    folder: Path
    rules: Mapping[str, "Rule"]
    block_rules: Mapping[str, "BlockRule"]
    environment: dict[str, str] = field(default_factory=dict)
    outcomes: dict[Item, Outcome | Exception] = field(default_factory=dict)
    clock: Iterator[datetime] = field(default_factory=lambda: (datetime.fromtimestamp(second) for second in count()))

    def __post_init__(self) -> None:
        """Lay out what the page takes for granted: its files, a user's packages, the environment."""
        (self.folder / "site").mkdir(parents=True)
        (self.folder / ".venv").symlink_to(sys.prefix)
        installed = {f"site/{name}": text for name, text in MODULES.items()}
        for name, text in (self.page.files() | installed).items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(text)

    def outcome(self, item: Item) -> Outcome:
        """What comes of an item when everything above it on the page has been done before; raises what it raised."""
        for earlier in self.page.items[: self.page.items.index(item) + 1]:
            if earlier not in self.outcomes and earlier.kind != "output":
                try:
                    self.outcomes[earlier] = self._try(earlier)
                except Exception as error:
                    self.outcomes[earlier] = error
        found = self.outcomes[item]
        if isinstance(found, Exception):
            raise found
        return found

    def above(self, output: Item) -> list[Item]:
        """The commands of the block above a block of output."""
        before = [item for item in self.page.of_kind("command") if 0 < item.block < output.line]
        return [item for item in before if item.block == before[-1].block]

    def run(self, words: Sequence[str], environment: dict[str, str]) -> Outcome:
        """Run one command, as words."""
        program = Path(words[0]).name
        if program not in self.rules:
            raise NoRuleError(f"PROGRAMS in tests/pages/rules.py has no rule for {program!r}")
        self._make_what_it_names(words)
        return self.rules[program](self, list(words), self.environment | environment)

    @cached_property
    def cluster(self) -> Cluster:
        """Flower's and Ray's programs of this page."""
        return Cluster(self.folder)

    def end(self) -> None:
        """End what the page has started."""
        if "cluster" in self.__dict__:
            self.cluster.end()

    def here(self, text: str) -> str:
        """A word of the page with its absolute paths where they are in the folder; ~ is left to the program."""
        for path, place in ABSOLUTE.items():
            text = re.sub(rf"""(?<![^="']){re.escape(path)}(?=["'/]|$)""", str(self.folder / place), text)
        return text

    def _try(self, item: Item) -> Outcome:
        if item.kind != "command":
            if item.kind not in self.block_rules:
                raise NoRuleError(f"BLOCKS in tests/pages/rules.py has no rule for blocks of {item.kind!r}")
            return self.block_rules[item.kind](self, item)
        outcome = Outcome()
        for part in _parts(item.text):
            environment, words = _environment(part)
            if item.block == 0 and len(words) == 2 and (program := tuple(words)) in NAMED:
                words = [*program, "--help"]
            outcome = self.run(words, environment)
        return outcome

    def _make_what_it_names(self, words: Sequence[str]) -> None:
        read = [word for before, word in zip(["", *words], words, strict=False) if before != "--out"]
        for word in read:
            for name, make in FILES.items():
                path = (
                    self.here(word.rpartition("=")[2].strip("'\"")).removeprefix(f"{self.folder}/").removeprefix("~/")
                )
                if (path == name or path.startswith(f"{name}/")) and not (self.folder / name).exists():
                    make(self.folder / name)

    def outcome_of(self, exit_code: int, output: str, errors: str) -> Outcome:
        """The outcome of a program, as if the folder were the root of the machine."""
        return Outcome(exit_code, *(text.replace(str(self.folder), "") for text in (output, errors)))


Rule = Callable[[Reader, list[str], dict[str, str]], Outcome]
"""How to run a program: the words of a line, and the variables to set for it."""

BlockRule = Callable[[Reader, Item], Outcome]
"""What to do with a block of a language."""


def _parts(text: str) -> Iterator[list[str]]:
    """The words of the commands that a line joins with &&; what follows # is left out."""
    words = shlex.split(text, comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        yield words[:end]
        words = words[end + 1 :]


def _environment(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The variables that are set before a command, and the command."""
    given = [word for word in words if re.match(r"[A-Z_]+=", word)]
    before = words[: len(given)] if words[: len(given)] == given else []
    return dict(word.split("=", 1) for word in before), words[len(before) :]


def complaint(item: Item, outcome: Outcome) -> str | None:
    """What is not as the page says it, in words; None if everything is."""
    printed = f"it printed\n{outcome.output}{outcome.errors}"
    if item.shown and item.shown[0].startswith("fl-sim: "):
        if outcome.exit_code != 2 or " ".join(item.shown) != " ".join(outcome.errors.split()):
            return f"the page says that it ends with exit code 2 and this error; {outcome.exit_code}, {printed}"
        return None
    if outcome.exit_code:
        return f"it ended with exit code {outcome.exit_code}; {printed}"
    missing = lines_not_in(item.shown, outcome.output)
    return f"the page shows {missing[0]!r}, which is no line of it; {printed}" if missing else None


def lines_not_in(shown: Sequence[str], printed: str) -> list[str]:
    """The shown lines that were not printed: numbers may differ, … stands for anything, spaces for any."""
    shapes = [_shape(line) for line in printed.splitlines()]
    patterns = {line: re.escape(_shape(line)).replace("…", ".*") for line in shown}
    return [line for line, pattern in patterns.items() if not any(re.fullmatch(pattern, shape) for shape in shapes)]


def _shape(line: str) -> str:
    return re.sub(r"\d+(?:\.\d+)?", "#", " ".join(line.split()))
