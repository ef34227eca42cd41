"""Grey and non-square images from the settings to the pictures that a person looks at."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from attacks.observation import Observation
from experiments.report import build_report
from experiments.run_directory import RunDirectory
from experiments.strip import build_strip
from tests.experiments.in_process import run_in_process
from tests.experiments.made_up_run import tiny_settings
from tests.experiments.report_page import Page
from tests.experiments.test_cli import fl_sim

GUESS = "tests.attacks.toy_attacks:Guess"
GREY = ("data.name=digits", "data.channels=1", "data.partition=dirichlet", f"attack.name={GUESS}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Digits of 28x20 pixels through a network of two levels, sampled from at the end."""
    settings = tiny_settings(
        *GREY, "data.image_size=[28, 20]", "federation.rounds=1", "utility.every=1", "utility.samples=4"
    )
    return run_in_process(tmp_path_factory.mktemp("grey") / "run", settings)


def test_the_table_is_complete(run: RunDirectory) -> None:
    table = pd.read_csv(run.leakage_csv)
    assert set(table["status"]) == {"ok"}
    assert table[["psnr", "ssim", "flat_psnr"]].notna().all(axis=None)
    rounds = pd.read_parquet(run.rounds)
    assert rounds["heldout_loss"].notna().all()
    assert rounds["patch_distance"].notna().any()


def test_a_capture_says_the_shape_and_an_attack_on_it_draws_it(run: RunDirectory, tmp_path: Path) -> None:
    capture = sorted(run.captures.iterdir())[0]
    assert Observation.load(capture).circumstances.image_shape == (1, 28, 20)
    assert fl_sim("attack", capture, "--attack", GUESS, "--out", tmp_path / "out").exit_code == 0
    with Image.open(tmp_path / "out" / "reconstruction.png") as picture:
        assert picture.height * 20 == picture.width * 28


def test_the_report_and_the_strip_show_them(run: RunDirectory, tmp_path: Path) -> None:
    page = Page(build_report(run.path))
    assert re.search(r"28 \S 20 pixels", page.text)
    pictures = [page.picture(row, column) for row in page.rows for column in ("original", "found")]
    assert len(pictures) == 4
    assert {picture.size for picture in pictures} == {(20, 28)}
    assert all(picture.convert("L").convert("RGB").tobytes() == picture.tobytes() for picture in pictures)
    assert build_strip(run.path, tmp_path / "strip.png").stat().st_size > 0


def test_faces_in_a_network_for_colour_are_repeated(tmp_path: Path) -> None:
    settings = tiny_settings("data.name=faces", "data.partition=iid", "attack.name=none", "federation.rounds=1")
    run = run_in_process(tmp_path / "run", settings)
    assert torch.isfinite(torch.tensor(pd.read_parquet(run.rounds)["train_loss"])).all()
