"""Reads a report as its own script does: the text of the page, and the data in it."""

import base64
import io
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image


class Page(HTMLParser):
    """A page: its text, the addresses it would load, and its blocks of JSON by their id.

    ``charts`` are the texts of its charts, for those who cannot see them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.sources, self.charts, self.blocks = "", [], [], {}
        self._tag, self._block = "", ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The leakage table, a dictionary for each row."""
        return self.table("leakage")

    def table(self, name: str) -> list[dict[str, Any]]:
        table = self.blocks[name]
        return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]

    def picture(self, row: dict[str, Any], column: str) -> Image.Image:
        """The ``original``, the one ``found``, or the ``nearest`` public one."""
        webp = base64.b64decode(self.blocks["gallery"]["pictures"][row[column]])
        return Image.open(io.BytesIO(webp))

    def having(self, column: str, **values: object) -> int:
        """In how many rows with these values something is in ``column``."""
        return sum(
            row[column] is not None and all(row[name] == value for name, value in values.items()) for row in self.rows
        )

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._tag, self._block = tag, found.get("id") or ""
        self.sources += [value for key, value in found.items() if key in ("src", "href")]
        if found.get("class") == "plot":
            self.charts.append(found["aria-label"])

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "script" and self._block:
            self.blocks[self._block] = json.loads(data)
        elif self._tag not in ("script", "style"):
            self.text += data
