from typing import Any

import pytest

from experiments.sweep.file import SweepFile
from experiments.sweep.points import LONGEST_NAME, expand
from fl_sim.config import SettingsError
from fl_sim.draws import derive_seed


def points(**tables: Any) -> list[Any]:
    return expand(SweepFile.model_validate({"base": "demo-16", "client_seed": 7, **tables}))


def names(**tables: Any) -> list[str]:
    return [point.name for point in points(**tables)]


def test_a_grid_is_every_combination() -> None:
    grid = {"client": {"batch_size": [1, 4], "local_steps": [1, 2]}}
    assert names(grid=grid) == [
        "batch_size=1,local_steps=1",
        "batch_size=1,local_steps=2",
        "batch_size=4,local_steps=1",
        "batch_size=4,local_steps=2",
    ]


def test_a_list_is_run_with_every_combination_of_the_grid() -> None:
    run = [{}, {"defence": {"name": "top-k", "args": {"fraction": 0.1}}}]
    assert names(run=run) == ["base", "defence=top-k,fraction=0.1"]
    both = points(run=run, grid={"federation": {"rounds": [1, 2]}}, set={"client": {"lr": 0.1}})
    assert [point.name for point in both][2:] == [
        "defence=top-k,fraction=0.1,rounds=1",
        "defence=top-k,fraction=0.1,rounds=2",
    ]
    assert both[3].overrides[:4] == (
        "client.lr=0.1",
        'defence.name="top-k"',
        "defence.args.fraction=0.1",
        "federation.rounds=2",
    )


def test_without_anything_that_varies_it_is_one_run() -> None:
    assert names() == ["base"]


def test_both_seeds_are_derived_each_from_its_own_root_and_the_same_for_all_points_of_a_repetition() -> None:
    every = points(grid={"client": {"batch_size": [1, 2]}}, seed=3, repetitions=2)
    seeds = [point.overrides[-2:] for point in every]
    assert seeds[0] == (f"seed={derive_seed(3, 'sweep', 1)}", f"client.seed={derive_seed(7, 'private sweep', 1)}")
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert len({seed for pair in seeds for seed in pair}) == 4
    assert [point.seed for point in points(seed=3, client_seed=8)] == [every[0].seed]


def test_a_sweep_that_grows_keeps_the_names_that_it_had() -> None:
    few = names(grid={"client": {"batch_size": [1, 2]}})
    many = names(grid={"client": {"batch_size": [4, 1, 2]}}, repetitions=3)
    assert set(few) < set(many)
    assert many[-1] == "batch_size=2,repetition-3"


def test_names_are_safe_short_and_tell_values_apart() -> None:
    texts = ["a/b", "a:b", "../x", "Ä", "plain-1.5", "PLAIN-1.5", "x" * 300, "x" * 299 + "y"]
    found = names(grid={"data": {"name": texts}})
    assert len({name.casefold() for name in found}) == len(texts)
    for name in found:
        assert name.startswith("data=")
        assert len(name) <= LONGEST_NAME + 9
        assert not set(name) & set('/\\:*?"<>| ')
    # What cannot be read from the name is told by a digest, whatever the other values are.
    assert names(grid={"data": {"name": ["a:b"]}}) == [found[1]]


def test_settings_of_the_same_short_name_have_their_whole_key() -> None:
    assert names(grid={"client": {"lr": [0.1]}, "strategy": {"args": {"lr": [0.2]}}}) == [
        "client.lr=0.1,strategy.args.lr=0.2"
    ]
    assert names(grid={"model": {"block_out_channels": [[8, 16]]}, "data": {"strict": [True]}}) == [
        "block_out_channels=8-16,strict=true"
    ]


def test_the_same_run_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"rounds=1: 2 runs of the sweep set the same"):
        points(grid={"federation": {"rounds": [1, 1]}})
    with pytest.raises(SettingsError, match=r"run 2: client.lr is in .grid. too"):
        points(run=[{}, {"client": {"lr": 1}}], grid={"client": {"lr": [2]}})


def test_one_root_for_both_seeds_and_too_many_runs_are_refused() -> None:
    with pytest.raises(SettingsError, match="client_seed = 3: it is the public seed too"):
        expand(SweepFile(base="demo-16", seed=3, client_seed=3))
    many = {"client.batch_size": list(range(1000)), "client.lr": list(range(1000))}
    with pytest.raises(SettingsError, match="the sweep has 1000000 runs; allowed: at most 10000"):
        expand(SweepFile(base="demo-16", client_seed=3, grid=many))


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        ({"set": {"attack": {"args": {"b": 1}}}}, r"set: attack.args.b is in .grid. too, by attack.args; allowed"),
        ({"set": {"attack.args": {"b": 1}}}, r"set: attack.args.b is in .grid. too, by attack.args; allowed"),
        ({"run": [{}, {"attack": {"args": {"b": 1}}}]}, r"run 2: attack.args.b is in .grid. too, by attack.args"),
        ({"set": {"attack": {"args": {}}}}, r"set: attack.args is in .grid. too, by attack.args"),
    ],
)
def test_a_setting_that_the_grid_would_replace_is_refused(tables: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        points(grid={"attack": {"args": [{"a": 1}, {"a": 2}]}}, **tables)
