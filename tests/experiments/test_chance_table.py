from dataclasses import replace
from math import isnan
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from attacks.reconstruction_file import load_reconstruction, save_reconstruction
from experiments.chance import chance_level, nearest_public, public_pool
from experiments.chance_table import COLUMNS, _figure, _median, chance_table, save_chance
from experiments.experiment import build_recipe
from experiments.leakage import client_truth, read_leakage
from experiments.metrics import psnr
from experiments.run_directory import RunDirectory
from fl_sim.images.bundled import PHOTOGRAPHS
from tests.experiments.made_up_run import make_up_run, pictures

TWO = "attack.name=['residual', 'gidm']"


def table_of(run: RunDirectory) -> pd.DataFrame:
    settings = run.settings()
    return chance_table(run, settings, build_recipe(settings))


def test_a_row_per_attack_and_metric_that_can_be_computed(tmp_path: Path) -> None:
    run = make_up_run(tmp_path / "run", TWO, "client.batch_size=2", "metrics.names=['ssim', 'gmsd', 'lpips_vgg']")
    table = table_of(run)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == COLUMNS
    assert table["attack"].tolist() == ["gidm"] * 4 + ["residual"] * 4
    assert table["metric"].tolist() == ["mse", "psnr", "ssim", "gmsd"] * 2
    leakage = read_leakage(run.leakage_csv)
    for row in table.to_dict("records"):
        values = leakage.loc[leakage["attack"] == row["attack"], row["metric"]].dropna()
        assert (row["images"], row["reconstruction"]) == (len(values), pytest.approx(values.median()))
        assert row["public"].endswith("images of data.name = 'bundled' that no client holds")
    close = table[(table["attack"] == "residual") & (table["metric"] == "psnr")].iloc[0]
    assert close["reconstruction"] > close["nearest_public"] + 5 > close["chance"] + 5


def test_its_figures_are_those_of_the_originals_and_reconstructions_of_the_run(tmp_path: Path) -> None:
    run = make_up_run(tmp_path / "run")
    settings, recipe = run.settings(), build_recipe(run.settings())
    keys = [(1, 0), (1, 1), (2, 0)]  # of the last one the attack failed
    truth = torch.cat([client_truth(settings, recipe, client, number).images for number, client in keys])
    found = torch.cat([load_reconstruction(run.reconstruction(*key, "residual")).images for key in keys])
    pool = public_pool(settings, 3)
    assert pool is not None
    row = table_of(run).set_index("metric").loc["psnr"]
    assert row["images"] == 3
    assert row["nearest_public"] == pytest.approx(psnr(truth, nearest_public(truth, pool.images)).median().item())
    assert row["chance"] == pytest.approx(chance_level(psnr, found, truth))


def test_blank_originals_count_for_nothing(tmp_path: Path) -> None:
    settings = pictures(tmp_path / "images", blank=4, others=4)
    run = make_up_run(tmp_path / "run", *settings, "client.batch_size=4", "federation.rounds=3")
    leakage = read_leakage(run.leakage_csv)
    content = leakage[(leakage["flat_psnr"] < 30) & (leakage["status"] == "ok")]
    assert 0 < len(content) < len(leakage)
    assert table_of(run)["images"].unique().tolist() == [len(content)]


def test_a_long_run_is_compared_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.chance_table.MOST_ATTACKED", 2)
    assert table_of(make_up_run(tmp_path / "run"))["images"].unique().tolist() == [2]


def test_without_public_images_it_says_why(tmp_path: Path) -> None:
    photographs = f"data.photographs={list(PHOTOGRAPHS)}"
    run = make_up_run(tmp_path / "run", photographs, "data.partition=iid", "data.tiles_per_side=2")
    table = table_of(run)
    assert table["nearest_public"].isna().all()
    assert table["public"].unique().tolist() == ["none: clients hold all bundled photographs"]
    assert table["chance"].notna().all()


def test_it_is_a_file_of_the_run_unless_it_is_not_wanted(tmp_path: Path) -> None:
    for pairs in (50, 0):
        run = make_up_run(tmp_path / str(pairs), f"metrics.chance_pairs={pairs}")
        save_chance(run, run.settings(), build_recipe(run.settings()))
        assert run.chance.is_file() is bool(pairs)
    assert list(pd.read_parquet(tmp_path / "50" / "chance.parquet").columns) == list(COLUMNS)


def test_a_lost_reconstruction_is_left_out(tmp_path: Path) -> None:
    run = make_up_run(tmp_path / "run")
    run.reconstruction(1, 0, "residual").unlink()
    assert table_of(run)["images"].unique().tolist() == [2]


def test_reconstructions_of_a_batch_are_matched_whatever_their_order(tmp_path: Path) -> None:
    run = make_up_run(tmp_path / "run", "client.batch_size=3")
    before = table_of(run)
    for file in run.reconstructions.iterdir():
        found = load_reconstruction(file)
        save_reconstruction(file, replace(found, images=found.images.roll(1, 0), timesteps=found.timesteps.roll(1, 0)))
    pd.testing.assert_frame_equal(table_of(run), before)


def test_a_metric_that_raises_has_no_figures() -> None:
    def broken(truth: Tensor, found: Tensor) -> Tensor:
        raise RuntimeError("somebody's metric")

    assert isnan(_figure(_median, broken, torch.zeros(1), torch.zeros(1)))
