from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, dark and light, with three images each of their own colour."""
    for label, shade in (("dark", 10), ("light", 240)):
        (tmp_path / label).mkdir()
        for number in range(3):
            Image.new("RGB", (40, 30), (shade, number, 0)).save(tmp_path / label / f"{number}.png")
    return tmp_path
