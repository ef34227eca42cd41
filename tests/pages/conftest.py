from collections.abc import Iterator

import pytest

from tests.pages.pages import HELP, help_page, pages
from tests.pages.reading import Reader
from tests.pages.rules import BLOCKS, PROGRAMS


@pytest.fixture(scope="session")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reader]]:
    """One for every page, in a folder of its own; what they start is ended with the session."""
    every = (pages() | {HELP: help_page()}).items()
    folders = {name: tmp_path_factory.mktemp("page") / "folder" for name, _ in every}
    readers = {name: Reader(page, folders[name], PROGRAMS, BLOCKS) for name, page in every}
    yield readers
    for reader in readers.values():
        reader.end()
