from pathlib import Path

import pytest

from fl_sim.files import write_atomically


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")

    def half(file: Path) -> None:
        file.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, half)
    assert target.read_text() == "old"


def test_a_first_write_that_fails_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    target = tmp_path / "new" / "capture.safetensors"

    def half(file: Path) -> None:
        file.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, half)
    assert not target.exists()
    write_atomically(target, lambda file: file.write_text("new"))
    assert [path.name for path in target.parent.iterdir() if not path.name.startswith(".")] == [target.name]
    assert target.read_text() == "new"
