"""Every line and every block that a page or a command's help prints, done as printed; an id is page:line."""

import pytest

from tests.pages.pages import HELP, Item, help_page, pages
from tests.pages.reading import NoRuleError, Reader, complaint, lines_not_in
from tests.pages.stand_ins import NOT_RUN

PAGES = pages() | {HELP: help_page()}
STARTS_RAY = ("docs/flower.md",)


def _tests() -> list[object]:
    """One page after the other; side by side (pytest -n 2 --dist loadgroup) a page stays together."""
    found = []
    for name, page in PAGES.items():
        mark = pytest.mark.ray if name in STARTS_RAY else pytest.mark.xdist_group(name)
        ran = [item for item in page.items if _command(item) not in NOT_RUN]
        found += [pytest.param(name, item, id=str(item), marks=mark) for item in ran]
    return found


def _command(item: Item) -> str:
    return item.text.partition("#")[0].strip()


@pytest.mark.parametrize(("page", "item"), _tests())
def test_it_is_as_printed(readers: dict[str, Reader], page: str, item: Item) -> None:
    reader = readers[page]
    if item.kind == "output":
        above = [reader.outcome(command) for command in reader.above(item) if _command(command) not in NOT_RUN]
        missing = [lines_not_in(item.text.splitlines(), outcome.output) for outcome in above]
        if not any(not lines for lines in missing):
            _fail(item, f"no command above prints this; not printed were {missing}")
        return
    try:
        outcome = reader.outcome(item)
    except NoRuleError as error:
        _fail(item, f"{error}: add one there, or the line to NOT_RUN in tests/pages/stand_ins.py with a reason")
    if wrong := complaint(item, outcome):
        _fail(item, wrong)


def _fail(item: Item, wrong: str) -> None:
    pytest.fail(f"{item}: {item.text.strip()}\n{wrong}", pytrace=False)


def test_what_is_not_run_is_still_printed() -> None:
    printed = {_command(item) for page in PAGES.values() for item in page.items}
    assert set(NOT_RUN) <= printed
    assert all(NOT_RUN.values())
