"""The documentation site: whole, linked, and without anything from elsewhere."""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.pages.pages import REPOSITORY, pages
from tests.pages.site import build_site

pytestmark = pytest.mark.xdist_group("site")
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Elements that make a browser fetch something, and where they say what."""


@dataclass
class Html(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    text: str
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and LOADED[tag] in given and given.get("rel") not in ("next", "prev", "canonical"):
            self.loaded.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(tmp_path_factory.mktemp("site"))


@cache
def read(path: Path) -> Html:
    return Html(path.read_text())


def test_every_page_that_somebody_wrote_is_there(site: Path) -> None:
    written = {Path(name).relative_to("docs").with_suffix(".html") for name in pages() if name != "README.md"}
    assert written <= {path.relative_to(site) for path in site.rglob("*.html")}
    start = (site / "index.html").read_text()
    assert all(f'href="{page}' in start for page in ("threat-model.html", "attacks/index.html", "paper.html"))


def test_every_link_and_everything_that_is_loaded_is_on_the_site(site: Path) -> None:
    broken, elsewhere = [], []
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links begin at the root of wherever it is served
            continue
        for link in (*read(page).links, *read(page).loaded):
            if urlsplit(link).scheme in ("http", "https", "mailto"):
                elsewhere += [(page.name, link)] if link in read(page).loaded else []
                continue
            target = (page.parent / unquote(urlsplit(link).path)).resolve() if urlsplit(link).path else page
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(urlsplit(link).fragment)
            lost = not target.exists() or (anchor and target.suffix == ".html" and anchor not in read(target).anchors)
            broken += [(str(page.relative_to(site)), link)] if lost and anchor != "__top" else []
    assert not broken
    assert not elsewhere


def test_style_sheets_load_nothing_from_elsewhere(site: Path) -> None:
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_equations_need_no_script(site: Path) -> None:
    with_equations = {name for name, page in pages().items() if page.of_kind("math")}
    assert {"docs/how-it-works.md", "docs/attacks/gidm.md", "docs/attacks/residual.md"} <= with_equations
    for name in with_equations:
        text = (site / Path(name).relative_to("docs").with_suffix(".html")).read_text()
        assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == len(
            pages()[name].of_kind("math")
        )
        assert "arithmatex" not in text


def test_the_search_finds_settings_and_attacks_but_no_source(site: Path) -> None:
    found = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    assert any("attack.knows_defence" in entry["text"] for entry in found)
    assert any(entry["location"].startswith("attacks/gidm.html") for entry in found)
    assert not any(entry["location"].startswith("source/") for entry in found)


def test_a_source_file_that_a_page_links_to_is_a_page(site: Path) -> None:
    shown = (site / "source" / "attacks" / "residual" / "attack.py.html").read_text()
    assert "class" in shown
    assert 'href="../source/attacks/residual/attack.py.html"' in (site / "attacks" / "residual.html").read_text()


def test_the_readme_leads_to_the_start_page() -> None:
    assert "docs/index.md" in {link for _, link in pages()["README.md"].links}
    assert (REPOSITORY / "mkdocs.yml").is_file()
