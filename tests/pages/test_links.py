"""Relative links of README.md and docs/ lead somewhere."""

import pytest

from tests.pages.pages import REPOSITORY, pages

LINKS = [
    pytest.param(name, link, id=f"{name}:{line}")
    for name, page in pages().items()
    for line, link in page.links
    if "://" not in link
]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_a_link_leads_to_a_file_and_a_heading_in_it(page: str, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
    assert target.exists(), f"{link}: no such file"
    if anchor:
        name = str(target.resolve().relative_to(REPOSITORY))
        assert anchor in pages()[name].anchors, f"{link}: {name} has no such heading; {sorted(pages()[name].anchors)}"
