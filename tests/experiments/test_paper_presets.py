"""The presets of arXiv 2405.20380: they run, and say what they stand for."""

import tomllib

import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.settings import PRESETS, preset_names
from tests.pages.pages import pages

IMAGES = {
    "cifar100": ("uoft-cs/cifar100", 32),
    "celeba-hq": ("korexyz/celeba-hq-256x256", 128),
    "lsun-bedroom": ("pcuenq/lsun-bedrooms", 128),
}
EXPERIMENTS = {
    "known-gidm": ("known", "gidm"),
    "known-gidm-latent": ("known", "gidm"),
    "known-baselines": ("known", ["dlg", "inverting-gradients"]),
    "private-gidm-plus": ("private", "gidm-plus"),
}
EVERY = [pytest.param(images, experiment) for images in IMAGES for experiment in EXPERIMENTS]
SMALLER = ("model.block_out_channels=[8,8,8,8]", "model.layers_per_block=1", "data.name=bundled")
"""Four levels, as the paper's network has, and photographs that stand in for its images."""


def preset(images: str, experiment: str) -> str:
    return (PRESETS / "paper" / f"{images}-{experiment}.toml").read_text()


def test_there_is_one_for_every_experiment() -> None:
    named = {name for name in preset_names() if name.startswith("paper/")}
    assert named == {f"paper/{images}-{experiment}" for images in IMAGES for experiment in EXPERIMENTS}


@pytest.mark.parametrize(("images", "experiment"), EVERY)
def test_it_runs_on_photographs_that_stand_in_for_its_images(images: str, experiment: str) -> None:
    overrides = [word for setting in SMALLER for word in ("--set", setting)]
    result = CliRunner().invoke(app, ["run", f"paper/{images}-{experiment}", *overrides, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "one batch: training loss" in result.stdout
    assert tomllib.loads(result.stdout)["data"]["image_size"] == IMAGES[images][1]


@pytest.mark.parametrize(("images", "experiment"), EVERY)
def test_it_says_what_it_stands_for_and_what_it_takes(images: str, experiment: str) -> None:
    text = preset(images, experiment)
    tree = tomllib.loads(text)
    hub, side = IMAGES[images]
    assert (tree["data"]["name"], tree["data"]["image_size"]) == (hub, side)
    assert (tree["threat"], tree["attack"]["name"]) == EXPERIMENTS[experiment]
    head = text[: text.index("seed =")]
    assert all(words in head for words in ("arXiv 2405.20380", "Wants a GPU", "How long it takes", "data.name=bundled"))
    assert f"fl-sim train-prior --data {hub} --image-size {side} " in head


def test_they_differ_in_images_threat_and_attack_alone() -> None:
    trees = [tomllib.loads(preset(*each.values)) for each in EVERY]
    for tree in trees:
        del tree["threat"], tree["attack"], tree["data"]["name"], tree["data"]["image_size"]
    assert all(tree == trees[0] for tree in trees)


def test_the_page_of_the_paper_has_them_all() -> None:
    text = pages()["docs/paper.md"].text
    assert all(f"`{name}`" in text for name in (*IMAGES, *EXPERIMENTS))
    assert all(hub in text for hub, _ in IMAGES.values())
