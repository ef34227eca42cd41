"""``fl-sim attack`` on the captures of runs and from elsewhere: what is found later is what would have been found."""

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from attacks.reconstruction_file import load_reconstruction
from attacks.workers import Job, Result
from experiments.leakage import TIME_COLUMNS, read_leakage
from experiments.run_directory import RunDirectory
from fl_sim.images.sources import list_images
from tests.attacks.toy_attacks import Guess, tiny_observation
from tests.experiments.in_process import PoolInThisProcess, without_ray
from tests.experiments.made_up_run import pictures
from tests.experiments.test_cli import GUESS, assert_refused, fl_sim
from tests.experiments.test_resume import RUNS, Killed, start

FAIL = "tests.attacks.toy_attacks:Fail"
BOTH = f"attack.name=['{GUESS}', '{FAIL}']"
NEVER = "attack.when=never"
SETTINGS = {
    "FedSGD": RUNS["FedSGD with momentum"],
    "batches": ("client.batch_size=2", BOTH, "metrics.names=['ssim', 'gmsd']"),
    "gossip": RUNS["gossip"],
    "LoRA": RUNS["LoRA"],
    "sum of clients": ("defence.name=secure-aggregation",),
}


class AlsoGuess(Guess):
    """Another one of that name."""


def attack(*arguments: str | Path) -> str:
    with without_ray():
        result = fl_sim("attack", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def stopped_at(number: int, *arguments: str | Path) -> None:
    """``fl-sim attack``, killed in the attack of that number, from 1."""

    class Pool(PoolInThisProcess):
        done = 0

        def submit(self, job: Job, on_result: Callable[[Result], None]) -> None:
            Pool.done += 1
            if Pool.done == number:
                raise Killed
            super().submit(job, on_result)

    with without_ray(), patch("experiments.attack_later.AttackPool", Pool), pytest.raises(Killed):
        fl_sim("attack", *arguments)


def assert_same(later: RunDirectory, during: RunDirectory) -> None:
    """But for the times, and the run's name, which follows from its settings."""
    dropped = ["run", *TIME_COLUMNS]
    for read, name in ((read_leakage, "leakage_csv"), (pd.read_parquet, "leakage_parquet")):
        tables = [read(getattr(run, name)).drop(columns=dropped) for run in (later, during)]
        pd.testing.assert_frame_equal(*tables)
    for name in ("rounds", "chance"):
        pd.testing.assert_frame_equal(*(pd.read_parquet(getattr(run, name)) for run in (later, during)))
    found = [{path.name: path for path in run.reconstructions.iterdir()} for run in (later, during)]
    assert found[0].keys() == found[1].keys()
    for name, path in found[1].items():
        kept, wanted = load_file(found[0][name]), load_file(path)
        assert all(kept[key].equal(wanted[key]) for key in wanted), name
        assert load_reconstruction(found[0][name]).seed == load_reconstruction(path).seed
    assert later.report.stat().st_size == pytest.approx(during.report.stat().st_size, rel=0.05)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunDirectory]:
    """A fresh copy of a run with these settings."""
    made: dict[tuple[str, ...], RunDirectory] = {}

    def run(*settings: str) -> RunDirectory:
        if settings not in made:
            made[settings] = start(tmp_path_factory.mktemp("made") / "run", *settings)
        copy = tmp_path_factory.mktemp("copy") / "run"
        shutil.copytree(made[settings].path, copy)
        return RunDirectory(copy)

    return run


@pytest.mark.parametrize("name", SETTINGS)
def test_attacked_later_is_as_attacked_during_the_run(name: str, runs: Callable[..., RunDirectory]) -> None:
    later = runs(*SETTINGS[name], NEVER)
    assert read_leakage(later.leakage_csv).empty
    assert not later.reconstructions.exists()
    attack(later.path)
    assert_same(later, runs(*SETTINGS[name]))


def test_the_run_says_that_it_only_captures_and_what_attacks_it(
    runs: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    report = runs(NEVER).report.read_text()
    assert "captured, and not attacked yet" in report
    assert "captured, not attacked yet; to attack: fl-sim attack" in report
    chosen = ("--set", f"attack.name={GUESS}", "--set", NEVER, "--set", "model.checkpoint=none")
    with without_ray():
        said = fl_sim("run", "demo-16", *chosen, "--set", "federation.rounds=1", "--out", tmp_path / "run").output
    assert f"attacks: {GUESS} later, captures only for now;" in said
    assert f"captured, not attacked; to attack: fl-sim attack {tmp_path / 'run'}" in said
    assert_refused(fl_sim("run", "demo", "--set", NEVER, "--set", "attack.queue_limit=3"), "attack.queue_limit = 3")


@pytest.mark.parametrize("at", [1, 3, 6])
def test_it_goes_on_where_it_was_stopped(at: int, runs: Callable[..., RunDirectory]) -> None:
    later, during = runs(NEVER), runs()
    stopped_at(at, later.path)
    rows = read_leakage(later.leakage_csv)
    assert len(rows) == at - 1
    if at == 6:  # all but one have their rows; of another one the file is cut off
        last = sorted(later.reconstructions.iterdir())[0]
        last.write_bytes(last.read_bytes()[:100])
    left = 6 - (at - 1) + (at == 6)
    assert f"attacks to do: {left}; ended before: {6 - left}" in attack(later.path)
    assert_same(later, during)
    assert "attacks to do: 0; ended before: 6" in attack(later.path)
    assert_same(later, during)


def test_it_goes_on_if_it_was_stopped_before_the_report(runs: Callable[..., RunDirectory]) -> None:
    later = runs(NEVER)
    with without_ray(), patch("experiments.attack_later.save_medians", side_effect=Killed), pytest.raises(Killed):
        fl_sim("attack", later.path)
    assert "attacks to do: 0; ended before: 6" in attack(later.path)
    assert_same(later, runs())


def test_a_second_attack_is_added_and_failures_are_tried_again(runs: Callable[..., RunDirectory]) -> None:
    run, both = runs(), runs(BOTH)
    before = {path.name: path.read_bytes() for path in run.reconstructions.iterdir()}
    attack(run.path, "--attack", FAIL)
    assert_same(run, both)
    assert {path.name: path.read_bytes() for path in run.reconstructions.iterdir()} == before
    assert "attacks to do: 6; ended before: 6" in attack(run.path, "--attack", FAIL, "--attack", GUESS)
    assert_same(run, both)


def test_rows_without_their_files_stay_where_their_attack_is_not_asked_for(runs: Callable[..., RunDirectory]) -> None:
    run = runs()
    shutil.rmtree(run.reconstructions)
    attack(run.path, "--attack", FAIL)
    pd.testing.assert_frame_equal(
        *(read_leakage(each.leakage_csv).drop(columns=["run", *TIME_COLUMNS]) for each in (run, runs(BOTH)))
    )


def test_several_runs_and_patterns(runs: Callable[..., RunDirectory], tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(runs(NEVER).path, tmp_path / name)
    attack(tmp_path / "?", tmp_path / "a", "--workers", "3")
    for name in "ab":
        assert_same(RunDirectory(tmp_path / name), runs())


def captures(folder: Path, *clients: int) -> Path:
    folder.mkdir()
    for client in clients:
        tiny_observation(server_round=2, client=client).save(folder / f"of-{client}.safetensors")
    return folder


def test_captures_from_elsewhere(tmp_path: Path) -> None:
    folder, out = captures(tmp_path / "elsewhere", 0, 1), tmp_path / "found"
    die = "tests.attacks.toy_attacks:Die"
    chosen = ("--attack", GUESS, "--attack", die, "--set", f"{die}.times=0", "--set", f"{die}.graves={tmp_path}")
    command = (folder / "*.safetensors", *chosen, "--seed", "7", "--out", out)
    stopped_at(4, *command)
    assert len(list(out.glob("*.safetensors"))) == 3
    said = attack(*command)
    assert "attacks to do: 1; ended before: 3" in said
    assert "of-1-die: matching loss 1 in" in said
    assert sorted(path.name for path in out.iterdir()) == [
        f"of-{client}-{name}.{suffix}"
        for client in (0, 1)
        for name in ("die", "guess")
        for suffix in ("png", "safetensors")
    ]
    alone = ("attack", folder / "of-1.safetensors", "--attack", GUESS, "--seed", "7", "--out", tmp_path / "alone")
    assert fl_sim(*alone).exit_code == 0
    one, other = (
        load_reconstruction(path)
        for path in (out / "of-1-guess.safetensors", tmp_path / "alone" / "reconstruction.safetensors")
    )
    assert torch.equal(one.images, other.images)
    assert_refused(fl_sim("attack", *command, "--seed", "8"), "of another search: seed = ", "another --out")
    assert_refused(fl_sim("attack", *command, "--set", f"{die}.times=1"), "times = 0, here 1")


def test_failures_from_elsewhere_are_told_and_tried_again(tmp_path: Path) -> None:
    command = (captures(tmp_path / "elsewhere", 0, 1), "--attack", FAIL, "--attack", GUESS, "--out", tmp_path / "found")
    with without_ray():
        results = [fl_sim("attack", command[0] / "*", *command[1:]) for _ in range(2)]
    for result, line in zip(
        results, ("attacks to do: 4; ended before: 0", "attacks to do: 2; ended before: 2"), strict=True
    ):
        assert result.exit_code == 1
        assert line in result.output
        assert "of-0-fail: no luck today" in result.output
        assert "2 attacks failed" in result.output


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, runs: Callable[..., RunDirectory]) -> None:
    run, folder = runs(NEVER), captures(tmp_path / "elsewhere", 0, 1)
    (tmp_path / "plain").mkdir()
    captures(tmp_path / "other", 0)
    (tmp_path / "file").write_text("")
    tried = runs()
    unfinished = runs(NEVER)
    unfinished.state.write_bytes(b"")
    before = contents(tmp_path), contents(run.path), contents(tried.path), contents(unfinished.path)
    out, one, many = ("--out", tmp_path / "out"), folder / "of-0.safetensors", folder / "*"
    chosen = ("--attack", GUESS)
    for arguments, complaint in (
        ((tmp_path / "gone", run.path), "no such file or folder"),
        ((tmp_path / "gone*", *chosen), "matches nothing"),
        ((tmp_path / "plain", *chosen), "neither a capture nor a run directory: it has no config.toml"),
        ((runs("attack.name=none").path,), "kept no captures"),
        ((many, "--attack", "residul", *out), "did you mean 'residual'"),
        ((run.path, "--attack", "residul"), "did you mean 'residual'"),
        ((one,), "--attack: none was given"),
        ((many, *chosen, "--checkpoint", tmp_path / "log", *out), "--checkpoint and --resume"),
        ((run.path, "--resume"), "--checkpoint and --resume"),
        ((one, tmp_path / "other" / "of-0.safetensors", *chosen, *out), "called like"),
        ((many, *chosen, "--out", tmp_path / "file"), "allowed: a folder"),
        ((many, tmp_path / "file", *chosen, *out), "not a readable capture"),
        ((many, "--attack", "dlg", *out), "needs noise and timesteps"),
        ((run.path, "--attack", "dlg"), "needs noise and timesteps"),
        ((run.path, "--seed", "3"), "--seed 3: a run directory has its own"),
        ((run.path, *out), "a run directory has its own"),
        ((run.path, "--set", "depth=3"), "depth"),
        ((run.path, *chosen, "--attack", FAIL, "--set", "depth=3"), "--set depth=3: of which attack?"),
        ((many, "--attack", GUESS, "--attack", f"{__name__}:AlsoGuess", *out), "also called 'guess'"),
        ((run.path, "--device", "tpu"), "--device tpu"),
        ((unfinished.path,), f"fl-sim run --resume {unfinished.path}"),
    ):
        assert_refused(fl_sim("attack", *arguments), complaint)
    with run.locked():
        assert_refused(fl_sim("attack", run.path), "another run is in this folder")
    assert before == (contents(tmp_path), contents(run.path), contents(tried.path), contents(unfinished.path))


def test_arguments_are_those_of_the_run_and_may_not_change_on_the_way(
    runs: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    graves = tmp_path / "graves"
    graves.mkdir()
    die = 'attack.args."tests.attacks.toy_attacks:Die"'
    run = runs("attack.name=tests.attacks.toy_attacks:Die", f"{die}.times=0", f"{die}.graves={graves}", NEVER)
    attack(run.path)
    assert load_reconstruction(next(run.reconstructions.iterdir())).settings["graves"] == str(graves)
    complaint = f"graves = {str(graves)!r}, here {str(tmp_path)!r}"
    assert_refused(fl_sim("attack", run.path, "--set", f"graves={tmp_path}"), "of another search: ", complaint)


def test_without_the_runs_images_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", 0, 6)
    run = start(tmp_path / "run", *images, NEVER)
    shutil.rmtree(tmp_path / "images")
    list_images.cache_clear()
    assert_refused(fl_sim("attack", run.path), "nothing to compare with: ", "captures by their paths, with --out")
    attack(run.captures / "*", "--attack", GUESS, "--out", tmp_path / "found")
    assert len(list((tmp_path / "found").glob("*.png"))) == 6
