"""What README.md, the pages of docs/ and every --help print, collected: commands, their output, code, links.

Nothing here names a line: what somebody adds to a page is found, and tested, without anyone thinking of it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import click
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token

from experiments.cli import app

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = frozenset(
    {
        "export",
        "fl-sim",
        "flower-superlink",
        "flower-supernode",
        "flwr",
        "make",
        "mkdocs",
        "pip",
        "pkill",
        "python",
        "ray",
        "source",
    }
)
"""What a command in the middle of a sentence begins with; in a console or bash block every line is one."""

SHELLS = ("console", "bash")
HELP = "fl-sim --help"
"""The name of the page that all the examples of the commands' help make together."""

_MARKDOWN = MarkdownIt("commonmark").enable("table")
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_ASSIGNMENTS = r"(?:[A-Z_]+=\S* )*"


@dataclass(frozen=True)
class Item:
    """One thing that a page prints and a test can try, at ``line`` of the page, from 1.

    Attributes:
        kind: "command", "output", "python", or another language of a fenced block.
        text: a command without its prompt, or a block.
        shown: the lines of output that the page prints below a command.
        block: the line at which its fenced block begins; 0 for a command in a sentence.
        file: the name of the file that the block is, where the heading above it gives one.
    """

    page: str
    line: int
    kind: str
    text: str
    shown: tuple[str, ...] = ()
    block: int = 0
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class Page:
    """One page, read once; ``spans`` are the code spans of its sentences, ``links`` what it points at, by line."""

    name: str
    text: str
    items: list[Item] = field(default_factory=list)
    spans: list[tuple[int, str]] = field(default_factory=list)
    links: list[tuple[int, str]] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def files(self) -> dict[str, str]:
        """The files that the page shows whole, by their names."""
        return {item.file: item.text for item in self.items if item.file}

    def of_kind(self, kind: str) -> list[Item]:
        """The items of one kind, in order."""
        return [item for item in self.items if item.kind == kind]


@cache
def pages() -> dict[str, Page]:
    """README.md and every page of docs/ that somebody wrote, by their paths from the repository's root."""
    folders = (REPOSITORY / "docs", REPOSITORY / "docs" / "attacks")
    paths = [REPOSITORY / "README.md", *(path for folder in folders for path in sorted(folder.glob("*.md")))]
    return {name: read_page(name, path.read_text()) for path in paths if (name := str(path.relative_to(REPOSITORY)))}


def read_page(name: str, text: str) -> Page:
    """Take a page apart."""
    page, heading = Page(name, text), ""
    tokens = _MARKDOWN.parse(text)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "fence" and token.map:
            page.items += _of_block(name, token.info.strip(), token.content, token.map[0] + 2, _file_named(heading))
            heading = ""
        elif token.type == "inline" and token.map:
            if before and before.type == "heading_open":
                heading = token.content
                page.anchors.add(_slug(heading))
            spans = list(_spans(token.content, token.map[0] + 1))
            page.spans += spans
            page.items += [Item(name, line, "command", span) for line, span in spans if _is_command(span)]
            page.links += [(token.map[0] + 1, link) for link in _links(token)]
    return page


def help_page() -> Page:
    """The examples in the help of fl-sim and of all its commands, as one page; a line is the number of an example."""
    return Page(HELP, "", list(_examples("fl-sim", typer.main.get_command(app))))


def _of_block(page: str, language: str, content: str, line: int, file: str | None) -> Iterator[Item]:
    """The items of one fenced block whose first line is ``line`` of the page."""
    if language not in SHELLS:
        kind = "output" if language == "text" else language
        yield Item(page, line, kind, content, block=line, file=file)
        return
    command: tuple[int, str] | None = None
    shown: list[str] = []
    for number, text in enumerate(content.splitlines(), line):
        if command and command[1].endswith("\\"):
            command = (command[0], command[1][:-1] + text.removeprefix("> ").strip())
        elif language == "bash" or text.startswith("$ "):
            if command:
                yield Item(page, command[0], "command", command[1], tuple(shown), line)
            command, shown = (number, text.removeprefix("$ ").rstrip()), []
            if not command[1] or command[1].startswith("#"):
                command = None
        else:
            shown.append(text)
    if command:
        yield Item(page, command[0], "command", command[1], tuple(shown), line)


def _file_named(heading: str) -> str | None:
    """The file whose name ends a heading, in backticks."""
    found = re.search(r"`([\w.-]+\.\w+)`$", heading)
    return found[1] if found else None


def _spans(text: str, line: int) -> Iterator[tuple[int, str]]:
    for found in _CODE_SPAN.finditer(text):
        yield line + text[: found.start()].count("\n"), " ".join(found[2].split())


def _is_command(span: str) -> bool:
    """Whether a code span is something to type: a program with what follows it, not its mere name."""
    words = re.sub(f"^{_ASSIGNMENTS}", "", span).split()
    return len(words) > 1 and words[0] in PROGRAMS


def _links(token: Token) -> Iterator[str]:
    for child in token.children or ():
        target = child.attrs.get("href") if child.type == "link_open" else child.attrs.get("src")
        if target:
            yield str(target)


def _slug(heading: str) -> str:
    """The anchor that a heading gets on the usual hosts."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _examples(name: str, command: click.Command) -> Iterator[Item]:
    """The command lines in the help of a command and of those below it, which stand in colour or in bold there."""
    teaching, epilog = _marked(command.help or ""), _marked(command.epilog or "")
    paragraphs = [text for text in (command.epilog or "").split("\n\n") if text not in ("", "Examples:")]
    assert len(epilog) == len(paragraphs), f"{name} --help: every example begins with [cyan]fl-sim …[/cyan]"
    for number, example in enumerate(teaching + epilog, 1):
        yield Item(f"{name} --help", number, "command", example, block=1)
    for below, sub in getattr(command, "commands", {}).items():
        yield from _examples(f"{name} {below}", sub)


def _marked(text: str) -> list[str]:
    return [example for _, example in re.findall(r"\[(cyan|bold)\](fl-sim .+?)\[/\1\]", text)]
