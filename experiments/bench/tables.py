"""Tables as text, for a terminal and for a page of the documentation."""

from dataclasses import dataclass, field

from rich import box
from rich.table import Table as RichTable

WIDE = 130
"""Columns of a terminal below which a table is shown in brief."""


@dataclass(frozen=True)
class Table:
    """A table as text, whoever shows it; ``notes`` go below it, ``brief`` are the headings that matter most."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)
    brief: tuple[str, ...] = ()


def markdown(table: Table) -> str:
    """The table for a page of the documentation."""
    lines = [table.headings, ("---",) * len(table.headings), *table.rows]
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"### {table.title}", "", *(f"| {' | '.join(line)} |" for line in lines), "", *notes, ""])


def rich_table(table: Table, width: int) -> RichTable:
    """The table for a terminal of that many columns; where they are few, the most important figures."""
    shown_headings = table.brief if table.brief and width < WIDE else table.headings
    chosen = [index for index, heading in enumerate(table.headings) if heading in shown_headings]
    shown = RichTable(
        title=table.title,
        title_justify="left",
        caption="\n".join(table.notes) or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="dim",
        padding=(0, 1),
        collapse_padding=True,
        show_edge=False,
        pad_edge=False,
    )
    longest_word = max((len(word) for row in table.rows for word in row[0].split()), default=0)
    for index in chosen:
        shown.add_column(table.headings[index], no_wrap=index > 0, min_width=None if index else longest_word)
    for row in table.rows:
        shown.add_row(*(row[index] for index in chosen))
    return shown
