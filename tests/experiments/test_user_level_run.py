"""Runs whose attack finds one image a client, beside one that finds all: tables, report, strip, headline."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from attacks.reconstruction_file import load_reconstruction
from experiments.experiment import build_recipe
from experiments.headline import headline
from experiments.leakage import USER, client_truth, read_leakage
from experiments.metrics import psnr
from experiments.report import build_report
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from experiments.strip import build_strip
from experiments.summary import summarise
from fl_sim.config import SettingsError
from fl_sim.settings_file import load_settings
from tests.experiments.in_process import run_in_process
from tests.experiments.report_page import Page

CLASSIFIER: dict[str, Any] = {
    "task": "classification",
    "data": {"name": "digits", "channels": 1, "limit": 60},
    "model": {"classifier": "ConvNet", "classifier_args": {"channels": [4, 4]}},
    "federation": {"clients": 2, "rounds": 1},
    "client": {"seed": 11, "batch_size": 4},
    "attack": {"name": "user-level", "workers": 1, "args": {"user-level": {"steps": 60}}},
}
DIFFUSION: dict[str, Any] = {
    "model": {"checkpoint": "none", "block_out_channels": [8], "norm_num_groups": 4},
    "data": {"partition": "photo"},
    "federation": {"clients": 2, "rounds": 1},
    "client": {"seed": 11, "batch_size": 2},
    "attack": {
        "name": ["user-level", "tests.attacks.toy_attacks:Guess"],
        "workers": 1,
        "args": {"user-level": {"steps": 8, "draws": 2, "prior": "global"}},
    },
}


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_in_process(tmp_path_factory.mktemp("run") / "run", load_settings(ExperimentSettings, CLASSIFIER))


def test_a_run_has_one_row_a_round_and_client(classified: RunDirectory) -> None:
    leakage = pd.read_parquet(classified.leakage_parquet)
    assert leakage["image"].tolist() == [USER, USER]
    assert leakage["client"].tolist() == [0, 1]
    assert (leakage["status"] == "ok").all()
    settings = classified.settings()
    for row in leakage.to_dict("records"):
        found = load_reconstruction(classified.reconstruction(1, row["client"], "user-level"))
        assert found.images.shape == (1, 1, 16, 16)
        mean = client_truth(settings, build_recipe(settings), row["client"], 1).images.mean(dim=0, keepdim=True)
        assert row["psnr"] == pytest.approx(float(psnr(mean, found.images)))
    pd.testing.assert_frame_equal(read_leakage(classified.leakage_csv), leakage)


def test_the_report_shows_the_mean_image(classified: RunDirectory) -> None:
    page = Page(build_report(classified.path))
    assert page.having("original", image="user") == page.having("found", attack="user-level") == 2
    assert "median PSNR to the mean of a client's images" in page.text
    assert "Client 1, mean image" in {row["name"] for row in page.rows}
    assert "labels recovered exactly" not in page.text


def test_the_headline_counts_no_labels_of_an_image_that_stands_for_several(classified: RunDirectory) -> None:
    console = Console(record=True, width=120)
    for line in headline(pd.read_parquet(classified.leakage_parquet), build_recipe(classified.settings()).model):
        console.print(line)
    (row,) = [line for line in console.export_text().splitlines() if "user-level" in line]
    assert re.fullmatch(r"\s*user-level\s+2\s+[\d.]+ dB\s+\d+ %\s*", row)


def test_a_strip_shows_no_image_that_stands_for_several(classified: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no attack ended with an image to show"):
        build_strip(classified.path, tmp_path / "strip.png")


def test_two_kinds_of_attack_share_a_table_and_a_report(tmp_path: Path) -> None:
    directory = run_in_process(tmp_path / "run", load_settings(ExperimentSettings, DIFFUSION))
    leakage = pd.read_parquet(directory.leakage_parquet)
    assert leakage["image"].tolist() == [USER, "0", "1"] * 2
    assert leakage["timestep"].isna().tolist() == [True, False, False] * 2
    assert {summary.attack: summary.of_users for summary in summarise(leakage)} == {
        "guess": False,
        "user-level": True,
    }
    page = Page(build_report(directory.path))
    assert len(page.rows) == page.having("original") == 2 * 3
    assert build_strip(directory.path, tmp_path / "strip.png").is_file()
