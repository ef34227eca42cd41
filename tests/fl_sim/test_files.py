import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fl_sim.files import naming, write_atomically


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
    assert not list(target.parent.iterdir())
    write_atomically(target, lambda file: file.write_text("new"))
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert target.read_text() == "new"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target in (tmp_path, pipe):
        with pytest.raises(OSError, match="is there and is no file"):
            write_atomically(target, lambda file: file.write_text("new"))
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"table\.csv") as caught, naming(tmp_path / "table.csv"):
        Path("/dev/full").write_text("a row")
    assert caught.value.errno == errno.ENOSPC


def test_what_the_system_tells_safetensors_is_an_error_of_the_system(tmp_path: Path) -> None:
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(OSError, match=r"No space left on device: '.*model'") as caught, naming(tmp_path / "model"):
        raise full
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(SafetensorError, match="of its own"), naming(tmp_path / "model"):
        raise SafetensorError("something of its own")
