"""What the ``flwr run`` lines of docs/flower.md leave, beyond having ended well."""

from pathlib import Path

import pandas as pd
import pytest

from experiments.leakage import TIME_COLUMNS
from experiments.run_directory import RunDirectory
from tests.experiments.in_process import run_in_process
from tests.pages.reading import Reader


@pytest.fixture
def reader(readers: dict[str, Reader]) -> Reader:
    """Somebody who has done the first two ``flwr run`` of the page."""
    reader = readers["docs/flower.md"]
    runs = [item for item in reader.page.of_kind("command") if item.text.startswith("flwr run .")]
    for run in runs[:2]:
        reader.outcome(run)
    return reader


@pytest.mark.ray
def test_flwr_run_leaves_the_run_directory_that_fl_sim_run_leaves(reader: Reader, tmp_path: Path) -> None:
    folder = min((reader.folder / ".fl-sim").glob("run-*"), key=lambda path: path.stat().st_ctime)
    directory = RunDirectory.open(folder)
    leakage = pd.read_parquet(directory.leakage_parquet)
    assert leakage["status"].tolist() == ["ok"] * 4
    assert pd.read_parquet(directory.rounds)["clients_seen"].map(list).tolist() == [[0, 1, 2, 3]]

    same = run_in_process(tmp_path / "same", directory.settings())
    assert _files(directory) == _files(same)
    times = list(TIME_COLUMNS)
    pd.testing.assert_frame_equal(
        leakage.drop(columns=times), pd.read_parquet(same.leakage_parquet).drop(columns=times), check_exact=True
    )


@pytest.mark.ray
def test_a_run_goes_where_out_says(reader: Reader) -> None:
    (folder,) = (reader.folder / "data" / "runs").glob("run-*")
    assert RunDirectory.open(folder).settings().client.batch_size == 2


def _files(directory: RunDirectory) -> set[str]:
    return {path.relative_to(directory.path).as_posix() for path in directory.path.rglob("*") if path.is_file()}
