from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from experiments.checkpoint import BUNDLED, load_checkpoint
from experiments.train_checkpoint import main, scaled_photographs
from fl_sim.checkpoint import Checkpoint
from fl_sim.images.bundled import TRAINING_PHOTOGRAPHS
from tests.experiments.test_cli import assert_refused

SMALL = ("--channels", "8,8", "--steps", "2", "--batch-size", "2")


def train(*arguments: str) -> Result:
    command = typer.Typer()
    command.command()(main)
    return CliRunner().invoke(command, arguments)


def trained(out: Path, *arguments: str) -> Checkpoint:
    result = train(*SMALL, "--out", str(out), *arguments)
    assert result.exit_code == 0, result.output
    return load_checkpoint(out)


def test_the_same_options_give_the_same_file_and_others_another_one(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    checkpoint = trained(first)
    trained(again)
    assert first.read_bytes() == again.read_bytes()
    facts = {"photographs": list(TRAINING_PHOTOGRAPHS), "steps": 2, "batch_size": 2, "seed": 0}
    assert checkpoint.notes == facts
    for number, other in enumerate((("--seed", "1"), ("--crops", "1"))):
        weights = trained(tmp_path / str(number), *other).weights
        assert not all(torch.equal(value, checkpoint.weights[name]) for name, value in weights.items()), other


def test_without_options_the_network_is_the_bundled_checkpoints(tmp_path: Path) -> None:
    out = tmp_path / "demo.safetensors"
    assert train("--steps", "1", "--batch-size", "1", "--out", str(out)).exit_code == 0
    assert load_checkpoint(out).model == load_checkpoint(BUNDLED).model


def test_the_options_describe_the_network(tmp_path: Path) -> None:
    wanted = ("--image-size", "24", "--channels", "8,16,16", "--layers", "2", "--attention")
    model = trained(tmp_path / "mine", *wanted).model
    assert (model["sample_size"], model["block_out_channels"]) == (24, [8, 16, 16])
    assert (model["layers_per_block"], model["add_attention"]) == (2, True)


def test_so_many_images_fit_along_the_shorter_side() -> None:
    pictures = scaled_photographs(16, (1, 3))
    assert [min(picture.shape[1:]) for picture in pictures] == [16, 48] * len(TRAINING_PHOTOGRAPHS)


def test_what_is_no_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert_refused(train("--steps", "1", "--out", str(tmp_path / "thesis.txt")), "thesis.txt: not a checkpoint")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_file_that_cannot_be_written_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.train_checkpoint.train", None)
    assert_refused(train("--out", str(tmp_path / ("x" * 300))), "name too long")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--channels", "32,many"), ("--channels 32,many", "whole numbers from 1")),
        (("--crops", "0"), ("--crops 0", "whole numbers from 1")),
        (("--channels", "30,64"), ("--channels 30,64", "divisible by")),
        (("--image-size", "17"), ("--image-size 17", "multiples of 2")),
        (("--out", "."), ("--out .", "allowed: a file")),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], complaint: tuple[str, ...]
) -> None:
    assert_refused(train("--out", str(tmp_path / "new" / "file"), *arguments), *complaint)
    assert not (tmp_path / "new").exists()
