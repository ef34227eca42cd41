"""What the site needs beyond Markdown: the source files that pages link to, and equations that need no script."""

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()\.\./[\w./-]+\.\w+(?=\))")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.+?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every source file that a page links to."""
    root = Path(config.config_file_path).parent
    pages = [file for file in files if file.is_documentation_page()]
    for source in sorted({source for page in pages for source in _sources(page.src_uri, page.content_string)}):
        code = f"````{Path(source).suffix[1:]}\n{(root / source).read_text()}````\n"
        text = f"---\nsearch: {{exclude: true}}\n---\n\n# {source}\n\n{code}"
        files.append(File.generated(config, _page_of(source), content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links to source files at their pages."""
    folder = posixpath.dirname(page.file.src_uri)

    def on_site(link: re.Match[str]) -> str:
        source = _source(page.file.src_uri, link[0])
        return link[0] if source is None else posixpath.relpath(_page_of(source), folder or ".")

    return LINK.sub(on_site, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Make MathML of the equations, which browsers show without a script."""
    return EQUATION.sub(
        lambda found: convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline"), content
    )


def _sources(page: str, markdown: str) -> Iterator[str]:
    yield from (source for link in LINK.findall(markdown) if (source := _source(page, link)))


def _source(page: str, link: str) -> str | None:
    """The file that a link of a page leads to, from the repository's root; None if it is in docs/ itself."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def _page_of(source: str) -> str:
    return f"source/{source}.md"
