"""``fl-sim sweep`` from end to end, its runs in this process."""

import shutil
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from experiments.cli import app
from experiments.launch import launch
from experiments.leakage import read_leakage
from experiments.run_directory import RunDirectory, locked
from experiments.sweep.directory import SweepDirectory
from experiments.sweep.processes import Task
from experiments.sweep.table import COLUMNS
from fl_sim.draws import derive_seed
from fl_sim.repeatable_grid import FederationError
from tests.experiments.in_process import in_turn
from tests.experiments.sweep.sweeps import TWO, sweep
from tests.experiments.test_cli import assert_refused
from tests.kill_and_resume import differences

NAMES = ["batch_size=1", "batch_size=2"]
FAILING = {
    **TWO,
    "grid": {"attack": {"name": ["tests.attacks.toy_attacks:Guess", "tests.attacks.toy_attacks:Fail"]}},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file of a sweep, and what it leaves in ``out``."""
    folder = tmp_path_factory.mktemp("whole")
    result = sweep(folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_run_is_a_whole_run_with_the_seeds_of_the_sweep(whole: Path) -> None:
    for name, batch in zip(NAMES, (1, 2), strict=True):
        run = RunDirectory(whole / "out" / name)
        assert run.ended
        assert run.settings().client.batch_size == batch
        assert (run.settings().seed, run.settings().client.seed) == (
            derive_seed(0, "sweep", 1),
            derive_seed(11, "private sweep", 1),
        )


def test_the_table_has_a_row_for_every_run_and_attack(whole: Path) -> None:
    directory = SweepDirectory(whole / "out")
    table = pd.read_parquet(directory.parquet)
    assert list(table) == ["client.batch_size", *COLUMNS]
    assert pd.read_csv(directory.csv).to_dict("records") == table.astype(object).to_dict("records")
    assert table["run"].tolist() == NAMES
    assert table["client.batch_size"].tolist() == [1, 2]
    assert table["status"].tolist() == ["ended"] * 2
    assert table["images"].tolist() == [2, 4]
    for row in table.to_dict("records"):
        run = RunDirectory(directory.path / row["directory"])
        leakage = read_leakage(run.leakage_csv)
        assert row["median_psnr"] == pytest.approx(leakage["psnr"].median())
        assert row["utility"] == pytest.approx(pd.read_parquet(run.rounds)["heldout_loss"].iloc[-1])
        assert row["attack"] == "guess"


def test_the_report_compares_the_runs(whole: Path) -> None:
    page = (whole / "out" / "report.html").read_text()
    assert all(name in page for name in NAMES)


def test_what_is_done_is_not_done_again(copy: Path) -> None:
    before = content(copy / "out")
    with patch("tests.experiments.in_process.in_turn", return_value=[]) as runs:
        result = sweep(copy)
    assert result.exit_code == 0, result.output
    assert runs.call_args.args[0] == []
    assert "ended before: 2" in result.output
    after = content(copy / "out")
    assert {path for path in before if before[path] != after.get(path)} <= {
        Path("report.html"),
        Path("sweep.toml"),  # the base is elsewhere
    }


def test_what_is_half_done_is_finished_and_what_is_missing_is_begun(copy: Path, whole: Path) -> None:
    half, gone = (RunDirectory(copy / "out" / name) for name in NAMES)
    half.model.unlink()
    half.report.unlink()
    shutil.rmtree(half.captures)
    shutil.rmtree(gone.path)
    gone.path.mkdir()
    (gone.path / ".config.toml.unfinished").write_text("[attack")  # killed while it wrote its first file
    result = sweep(copy)
    assert result.exit_code == 0, result.output
    for name in NAMES:
        assert differences(RunDirectory(copy / "out" / name), RunDirectory(whole / "out" / name)) == []
    assert (copy / "out" / "sweep.csv").read_text() == (whole / "out" / "sweep.csv").read_text()


def test_a_sweep_may_grow(copy: Path) -> None:
    result = sweep(copy, tables={**TWO, "grid": {"client": {"batch_size": [1, 3, 2]}}})
    assert result.exit_code == 0, result.output
    assert "runs to do: 1; ended before: 2" in result.output
    assert pd.read_csv(copy / "out" / "sweep.csv")["client.batch_size"].tolist() == [1, 3, 2]


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        ({"set": {"federation": {"rounds": 2}}}, "batch_size=1: federation.rounds = 2, but the run was started with 1"),
        ({"client_seed": 12}, "batch_size=1: client.seed = "),
        ({"seed": 5}, "batch_size=1: seed = "),
        ({"grid": {"client": {"batch_size": [1]}}}, "batch_size=2: not a run of this sweep; allowed: the sweep"),
    ],
)
def test_other_settings_than_before_are_refused(copy: Path, tables: dict[str, Any], complaint: str) -> None:
    before = content(copy / "out")
    assert_refused(sweep(copy, tables={**TWO, **tables}), complaint, "another --out")
    assert content(copy / "out") == before


def test_a_private_seed_that_was_drawn_is_kept(tmp_path: Path) -> None:
    tables = {"grid": {"client": {"batch_size": [1]}}}
    assert sweep(tmp_path, tables=tables).exit_code == 0
    root = tomllib.loads((tmp_path / "out" / "sweep.toml").read_text())["client_seed"]
    used = RunDirectory(tmp_path / "out" / NAMES[0]).settings().client.seed
    assert used == derive_seed(root, "private sweep", 1)
    assert "ended before: 1" in sweep(tmp_path, tables=tables).output
    (tmp_path / "out").rename(tmp_path / "before")
    assert sweep(tmp_path, tables=tables).exit_code == 0
    assert RunDirectory(tmp_path / "out" / NAMES[0]).settings().client.seed != used


def test_a_failing_run_does_not_end_the_sweep(tmp_path: Path) -> None:
    def fail_the_first(source: str, overrides: Sequence[str], out: Path, console: Console) -> None:
        if out.name == NAMES[0]:
            raise FederationError("no client answered")
        launch(source, overrides, out, console)

    with patch("experiments.launch.launch", fail_the_first):
        result = sweep(tmp_path)
    assert result.exit_code == 1
    assert "failed: batch_size=1: no client answered" in result.output
    table = pd.read_csv(tmp_path / "out" / "sweep.csv")
    assert table["status"].tolist() == ["failed: no client answered", "ended"]
    assert table["median_psnr"].isna().tolist() == [True, False]
    assert sweep(tmp_path).exit_code == 0
    assert pd.read_csv(tmp_path / "out" / "sweep.csv")["status"].tolist() == ["ended", "ended"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: run.leakage_csv.unlink(),
        lambda run: run.leakage_csv.write_text("round,client\n"),
        lambda run: run.config.unlink(),
    ],
)
def test_a_damaged_run_does_not_stop_the_others(copy: Path, damage: Callable[[RunDirectory], object]) -> None:
    run = SweepDirectory(copy / "out").run(NAMES[1])
    damage(run)
    result = sweep(copy)
    assert result.exit_code == 1, result.output
    assert f"failed: {NAMES[1]}: {run.path}" in result.output
    assert "to run it again, remove its folder" in result.output
    table = pd.read_csv(copy / "out" / "sweep.csv")
    assert table["status"].str.partition(":")[0].tolist() == ["ended", "failed"]
    assert table["median_psnr"].isna().tolist() == [False, True]
    shutil.rmtree(run.path)
    assert sweep(copy).exit_code == 0


def test_a_copy_without_hidden_files_goes_on(copy: Path) -> None:
    (copy / "out" / ".lock").unlink()
    result = sweep(copy)
    assert result.exit_code == 0, result.output
    assert "runs to do: 0" in result.output


def test_its_report_is_built_again_from_its_table(copy: Path) -> None:
    directory = SweepDirectory(copy / "out")
    page = directory.report.read_bytes()
    directory.report.unlink()
    result = CliRunner().invoke(app, ["report", str(directory.path)])
    assert result.exit_code == 0, result.output
    assert directory.report.read_bytes() == page
    directory.parquet.unlink()
    for command in ("report", "watch"):
        assert_refused(CliRunner().invoke(app, [command, str(directory.path)]), "no table", "fl-sim sweep")


def test_attacks_that_find_nothing_are_no_failure_of_the_run(tmp_path: Path) -> None:
    result = sweep(tmp_path, tables=FAILING)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "sweep.csv")
    assert table["status"].tolist() == ["ended", "ended"]
    assert table["median_psnr"].isna().tolist() == [False, True]
    assert table["share_recognisable"].tolist() == [0, 0]
    assert "fail: failed in" in result.output
    assert "nan" not in result.output


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        ({"grid": {"client": {"batchsize": [1]}}}, ("batchsize=1: client.batchsize = 1: unknown setting",)),
        ({"grid": {"client": {"batch_size": [1, "many"]}}}, ("batch_size=many: client.batch_size = 'many'",)),
        ({"grid": {"defence": {"name": ["none", "topk"]}}}, ("defence=topk: defence.name", "did you mean 'top-k'")),
        ({"grid": {"client": {"lr": [0.1]}}}, ("lr=0.1: client.lr = 0.1: with client.update = 'gradient'",)),
        ({"grid": {"attack": {"name": ["dlg"]}}}, ("attack=dlg: attack 'dlg' needs",)),
        ({"set": {"attack": {"wokers": 1}}}, ("batch_size=1: attack.wokers", "did you mean 'attack.workers'")),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_wrong_point_is_one_line_before_anything_is_run(
    tmp_path: Path, tables: dict[str, Any], complaint: tuple[str, ...], more: tuple[str, ...]
) -> None:
    assert_refused(sweep(tmp_path, *more, tables={**TWO, **tables}), *complaint)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    assert_refused(sweep(tmp_path), "the folder is not empty")
    assert set(content(tmp_path / "out")) == {Path("thesis.txt")}


def test_two_sweeps_are_not_in_one_folder(copy: Path) -> None:
    with locked(copy / "out" / ".lock", "busy"):
        assert_refused(sweep(copy), "another sweep is in this folder")


def test_the_dry_run_shows_the_plan_and_what_it_is_made_of_and_leaves_nothing(tmp_path: Path) -> None:
    result = sweep(tmp_path, "--dry-run", tables={**TWO, "repetitions": 3})
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in NAMES)
    assert "2 points, 3 repetitions each: 6 runs" in result.output
    assert "An estimate" in result.output
    assert set(content(tmp_path)) == {Path("base.toml"), Path("sweep.toml")}


def test_what_was_done_before_it_was_stopped_is_in_the_table(tmp_path: Path, whole: Path) -> None:
    class StoppedError(BaseException): ...

    def stop(tasks: Sequence[Task], *rest: Any) -> Iterator[tuple[Task, str | None]]:
        yield from in_turn(tasks[:1], *rest)
        raise StoppedError

    with patch("tests.experiments.in_process.in_turn", stop), pytest.raises(StoppedError):
        sweep(tmp_path)
    assert pd.read_csv(tmp_path / "out" / "sweep.csv")["status"].tolist() == ["ended", "not ended"]
    assert sweep(tmp_path).exit_code == 0
    assert (tmp_path / "out" / "sweep.csv").read_text() == (whole / "out" / "sweep.csv").read_text()


def test_a_file_of_a_person_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "sweep.toml").write_text('# mine\nbase = "demo-16"\n')
    result = sweep(tmp_path)
    assert result.exit_code == 2
    assert "no sweep wrote it" in result.stderr
    assert (folder / "sweep.toml").read_text() == '# mine\nbase = "demo-16"\n'
