from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from experiments.bench.defences import SETUPS
from experiments.bench.federations import UNDEFENDED
from experiments.settings import ExperimentSettings, load_run
from experiments.sweep.file import SweepFile, flatten, load_sweep, sweep_names
from experiments.sweep.points import expand
from fl_sim.config import SettingsError
from fl_sim.settings_file import load_settings
from tests.experiments.sweep.sweeps import write


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('base = "demo-16"\nruns = 3', "runs: unknown key; allowed: base, seed"),
        ('base = "demo-16"\nrepetition = 3', "did you mean 'repetitions'"),
        ("seed = 1", "base is not set; allowed: a preset (demo"),
        ('base = "demmo-16"', "base = 'demmo-16': no such preset; allowed: demo"),
        ('base = "demo-16"\nrepetitions = 0', "repetitions = 0: input should be greater than or equal to 1"),
        ('base = "demo-16"\nseed = -1', "seed = -1"),
        ('base = "demo-16"\n[grid]\nclient.lr = 0.1', "grid: client.lr = 0.1: allowed: a list of values"),
        ('base = "demo-16"\n[grid]\nclient.lr = []', "grid: client.lr = []: allowed: a list of values"),
        ('base = "demo-16"\n[set]\nclient.seed = 3', "client.seed follows from the sweep's own client_seed"),
        ('base = "demo-16"\n[grid]\n"seed" = [3, 4]', "seed follows from the sweep's own seed"),
        ('base = "demo-16"\n[run]\nclient.lr = 3', "run = "),
        ("base = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as refused:
        load_sweep(str(file))
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_name_that_nobody_knows_is_told_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"sweep 'defenses' is unknown.* did you mean 'defences'"):
        load_sweep("defenses")


def test_a_file_as_read_is_written_as_one_that_is_read_the_same(tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "client_seed": 5,
        "repetitions": 2,
        "set": {"federation": {"rounds": 1}, "strategy": {"args": {}}},
        "grid": {"model": {"block_out_channels": [[8, 8], [8, 16]]}},
        "run": [{"defence": {"name": "none"}}, {"defence": {"name": "top-k", "args": {"fraction": 0.5}}}],
    }
    sweep = load_sweep(str(write(tmp_path, **tables)))
    assert sweep.base == str(tmp_path / "base.toml")
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "copy.toml"
    copy.write_text(sweep.to_toml())
    assert load_sweep(str(copy)) == sweep


def test_settings_in_quotes_and_as_tables_are_the_same() -> None:
    assert flatten({"client.lr": 1}) == flatten({"client": {"lr": 1}}) == {("client", "lr"): 1}
    assert flatten({"strategy": {"args": {}}}) == {("strategy", "args"): {}}
    named = {"attack": {"args": {"my.package:Attack": {"depth": 1}}}}
    assert flatten(named) == {("attack", "args", "my.package:Attack", "depth"): 1}


def test_what_is_set_on_the_command_line_counts_for_every_run_but_not_for_what_varies(tmp_path: Path) -> None:
    file = str(write(tmp_path, set={"client": {"lr": 1, "momentum": 0.5}}, grid={"client": {"batch_size": [1, 2]}}))
    assert load_sweep(file, ["client.lr=2", "data.limit=9"]).set == {
        "client": {"lr": 2, "momentum": 0.5},
        "data": {"limit": 9},
    }
    with pytest.raises(SettingsError, match=r"--set client.batch_size: it varies in the sweep"):
        load_sweep(file, ["client.batch_size=4"])


@pytest.mark.parametrize("name", sweep_names())
def test_the_presets_are_sweeps_whose_settings_can_be_had(name: str) -> None:
    sweep = load_sweep(name).model_copy(update={"client_seed": 1})
    assert isinstance(sweep, SweepFile)
    assert len(expand(sweep)) > 1
    for point in expand(sweep):
        load_run(sweep.base, point.overrides)


def test_the_benchmark_of_defences_is_one() -> None:
    def trained(settings: ExperimentSettings) -> dict[str, Any]:
        tree = settings.model_dump(mode="json")
        del tree["client"]["seed"], tree["federation"]["client_cpus"], tree["federation"]["rounds"]
        return {name: tree[name] for name in ("data", "model", "federation", "client", "strategy", "defence")}

    sweep = load_sweep("defences-over-rounds").model_copy(update={"client_seed": 1})
    runs = [load_run(sweep.base, point.overrides) for point in expand(sweep)]
    assert {run.federation.rounds for run in runs} == {1, 100}
    assert not any(run.attack.due(number, 100) for run in runs for number in range(1, 100))
    measured = [trained(load_settings(ExperimentSettings, UNDEFENDED, setup.overrides)) for setup in SETUPS]
    planned = [trained(run) for run in runs]
    assert [tree for tree in planned if tree not in measured] == []
    assert [tree for tree in measured if tree not in planned] == []


@pytest.mark.parametrize(
    ("grid", "complaint"),
    [
        ({"client": {"batch_size": [1]}, "client.batch_size": [2]}, "client.batch_size is set twice"),
        ({"client.lora": [1], "client.lora.rank": [2]}, "client.lora is set twice, by client.lora.rank too"),
        ({"client": [{"seed": 3}, {"seed": 4}]}, "client: a whole section"),
    ],
)
def test_no_value_is_lost_and_no_section_taken_whole(grid: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        SweepFile(base="demo-16", grid=grid)
