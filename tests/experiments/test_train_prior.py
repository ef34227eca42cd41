import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import Result

from experiments import train_prior as module
from experiments.checkpoint import BUNDLED, load_checkpoint
from experiments.prior_images import PriorSource, read_images, scaled_photographs
from experiments.public_images import image_hashes
from experiments.run_directory import locked
from fl_sim.checkpoint import Checkpoint
from fl_sim.config import DataSettings
from fl_sim.diffusion import KNOWN_NETWORKS
from fl_sim.images.bundled import TRAINING_PHOTOGRAPHS
from fl_sim.images.sources import list_images
from fl_sim.network import num_classes
from tests.experiments.test_cli import assert_refused, fl_sim

DEFAULT_SHAPE = ("--block-out-channels", "32,64")
SMALL = ("--block-out-channels", "8,8", "--steps", "2", "--batch-size", "2", "--samples", "2", "--device", "cpu")
DIGITS = ("--data", "digits", "--grey", "--set", "limit=20")


def train(out: Path, *arguments: str) -> Result:
    given = arguments if "--data" in arguments else ("--data", "bundled", *arguments)
    return fl_sim("train-prior", "--out", out, *SMALL, *given)


def trained(out: Path, *arguments: str) -> Checkpoint:
    result = train(out, *arguments)
    assert result.exit_code == 0, result.output
    return load_checkpoint(out)


def test_the_same_options_give_the_same_file_and_others_another_one(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    checkpoint = trained(first)
    trained(again)
    assert first.read_bytes() == again.read_bytes()
    for number, other in enumerate((("--seed", "1"), ("--crops", "1"), ("--horizontal-flip",), ("--lr", "0.01"))):
        weights = trained(tmp_path / str(number), *other).weights
        assert not all(torch.equal(value, checkpoint.weights[name]) for name, value in weights.items()), other


def test_a_picture_of_samples_lies_beside_the_checkpoint(tmp_path: Path) -> None:
    trained(tmp_path / "prior")
    with Image.open(tmp_path / "prior.png") as picture:
        assert picture.size == (8 * (2 * 17 - 1), 8 * 16)
    trained(tmp_path / "none", "--samples", "0")
    assert not (tmp_path / "none.png").exists()


def test_without_options_the_network_is_the_bundled_checkpoints(tmp_path: Path) -> None:
    out = tmp_path / "demo.safetensors"
    few = ("--steps", "1", "--batch-size", "1", "--samples", "0")
    assert fl_sim("train-prior", "--data", "bundled", "--out", out, *few).exit_code == 0
    assert load_checkpoint(out).model == load_checkpoint(BUNDLED).model


def test_the_options_describe_the_network_and_the_file(tmp_path: Path) -> None:
    shape = ("--image-size", "24", "--block-out-channels", "8,16,16", "--layers-per-block", "2", "--attention")
    checkpoint = trained(tmp_path / "mine", *shape, "--grey", "--dtype", "float16")
    model = checkpoint.model
    assert (model["sample_size"], model["in_channels"], model["block_out_channels"]) == (24, 1, [8, 16, 16])
    assert (model["layers_per_block"], model["add_attention"]) == (2, True)
    assert {value.dtype for value in load_file(tmp_path / "mine").values()} == {torch.float16}


def test_a_known_network_may_be_named(tmp_path: Path) -> None:
    model = trained(tmp_path / "mine", *DEFAULT_SHAPE, "--network", "small", "--grey", "--image-size", "12").model
    assert model == KNOWN_NETWORKS["small"] | {"sample_size": 12, "in_channels": 1, "out_channels": 1}


def test_the_metadata_lists_what_it_was_trained_on(tmp_path: Path) -> None:
    notes = trained(tmp_path / "digits", *DIGITS, "--skip", "15").notes
    digits = list_images(DataSettings(name="digits", image_size=16)).decode(range(15, 20), 1)
    assert (notes["data"], notes["images"], notes["sha256"]) == ("digits", 5, image_hashes(digits))
    assert (notes["training"]["steps"], notes["training"]["skip"]) == (2, 15)
    photographs = trained(tmp_path / "photographs").notes
    assert photographs["photographs"] == list(TRAINING_PHOTOGRAPHS)
    assert len(set(photographs["sha256"])) == photographs["images"] == len(TRAINING_PHOTOGRAPHS)


def test_of_a_folder_the_metadata_has_the_name_alone_and_a_broken_image_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "private" / "pictures"
    folder.mkdir(parents=True)
    for shade in (10, 200):
        Image.new("RGB", (20, 30), (shade, 0, 0)).save(folder / f"{shade}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    notes = trained(tmp_path / "prior", "--data", str(folder)).notes
    assert (notes["data"], notes["images"], len(notes["sha256"])) == ("pictures", 2, 2)
    assert str(tmp_path).encode() not in (tmp_path / "prior").read_bytes()


def test_a_class_conditional_prior_has_a_null_class(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path / "prior", *DIGITS, "--classes")
    assert num_classes(checkpoint.model) == 11
    assert (checkpoint.notes["classes"], checkpoint.notes["label_dropout"]) == ([str(n) for n in range(10)], 0.1)
    other = trained(tmp_path / "other", *DIGITS, "--classes", "--label-dropout", "0.99")
    assert not torch.equal(other.weights["class_embedding.weight"], checkpoint.weights["class_embedding.weight"])


def test_so_many_images_fit_along_the_shorter_side() -> None:
    pictures = scaled_photographs(TRAINING_PHOTOGRAPHS, 16, (1, 3))
    assert [min(picture.shape[1:]) for picture in pictures] == [16, 48] * len(TRAINING_PHOTOGRAPHS)


def test_a_crop_has_the_label_of_its_photograph() -> None:
    images = read_images(PriorSource(data="bundled", classes=True, crops=(1, 2)))
    assert images.classes == TRAINING_PHOTOGRAPHS
    assert images.labels == [0, 0, 1, 1, 2, 2]
    crops, labels = images.draw(8, 16, False, torch.Generator().manual_seed(0))
    assert (crops.shape, len(set(labels.tolist()))) == ((8, 3, 16, 16), 3)


# --- broken off and resumed


class BrokenOffError(Exception):
    pass


@pytest.mark.parametrize("more", [(), (*DIGITS, "--classes")])
def test_a_resumed_training_ends_with_the_same_bits(
    tmp_path: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("--steps", "5", *more)
    trained(tmp_path / "whole" / "prior", *steps)
    out = tmp_path / "broken" / "prior"

    def broken(self: module.Bar, done: int, planned: int, loss: float) -> None:
        if done == 4:
            raise BrokenOffError

    with monkeypatch.context() as patched:
        patched.setattr(module.Bar, "__call__", broken)
        assert isinstance(train(out, *steps, "--save-every", "0").exception, BrokenOffError)
    assert [path.name for path in out.parent.iterdir()] == ["prior.unfinished"]
    assert_refused(train(out, *steps), "its training is not finished", "--resume")
    assert_refused(train(out, *steps, "--resume", "--seed", "3"), "was trained with seed = 0, not 3")
    trained(out, *steps, "--resume")
    assert out.read_bytes() == (tmp_path / "whole" / "prior").read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["prior", "prior.png"]


def test_a_killed_training_can_be_resumed(tmp_path: Path) -> None:
    steps = ("--steps", "12", "--save-every", "0")
    trained(tmp_path / "whole", *steps)
    out = tmp_path / "killed"
    words = ["train-prior", "--data", "bundled", "--out", str(out), *SMALL, *steps]
    command = [sys.executable, "-c", "from experiments.cli import main; main()", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = tmp_path / "killed.unfinished"
    while not state.exists() and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    trained(out, *steps, "--resume")
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


def test_whoever_stops_it_is_told_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.commands import how_to_go_on, unfinished

    monkeypatch.setattr(sys, "argv", ["fl-sim", "train-prior", "--data", "digits", "--out", "prior"])
    state = unfinished(tmp_path / "prior")
    assert how_to_go_on(state) == "nothing was written"
    state.touch()
    assert how_to_go_on(state) == "to go on: fl-sim train-prior --data digits --out prior --resume"


def test_there_is_something_to_go_on_from(tmp_path: Path) -> None:
    assert_refused(train(tmp_path / "prior", "--resume"), "--resume", "there is no such file")
    trained(tmp_path / "prior")
    (tmp_path / "other.unfinished").write_bytes((tmp_path / "prior").read_bytes())
    assert_refused(train(tmp_path / "other", "--resume"), "it is no unfinished training")


# --- bad input


def test_a_second_training_of_the_same_file_is_refused_meanwhile(tmp_path: Path) -> None:
    lock = tmp_path / ".prior.lock"
    lock.touch()
    with locked(lock, "busy"):
        assert_refused(train(tmp_path / "prior"), "another training is to write it")
    trained(tmp_path / "prior")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prior", "prior.png"]


def test_what_is_no_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert_refused(train(tmp_path / "thesis.txt"), "thesis.txt: not a checkpoint")
    (tmp_path / "prior.png").write_text("precious too")
    assert_refused(train(tmp_path / "prior"), "prior.png, is there")
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["precious too", "precious"]


def test_a_file_that_cannot_be_written_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train", None)
    assert_refused(train(tmp_path / ("x" * 300)), "name too long")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--block-out-channels", "32,many"), ("--block-out-channels 32,many", "whole numbers from 1")),
        ((*DEFAULT_SHAPE, "--network", "smal"), ("--network smal: unknown", "did you mean 'small'")),
        ((*DEFAULT_SHAPE, "--network", "paper", "--image-size", "28"), ("--image-size 28 --network paper",)),
        (("--crops", "0"), ("--crops 0", "whole numbers from 1")),
        (("--block-out-channels", "30,64"), ("--block-out-channels 30,64", "divisible by")),
        (("--image-size", "17"), ("--image-size 17", "multiples of 2")),
        (("--out", "."), ("--out .", "allowed: a file")),
        (("--dtype", "bfloat16"), ("--dtype bfloat16", "'float32' or 'float16'")),
        (("--data", "gone/folder/of/mine"), ("--data 'gone/folder/of/mine'",)),
        (("--data", "digit"), ("--data 'digit'", "did you mean 'digits'")),
        (("--data", "digits", "--crops", "2"), ("--crops", "allowed with --data bundled")),
        (("--data", "digits", "--skip", "1797"), ("--skip 1797", "no image is left of 1797")),
        (("--set", "limit=none"), ("data.limit = 'none'",)),
        (("--set", "limits=3"), ("data.limits", "did you mean 'data.limit'")),
        (("--set", "image_size=12"), ("--set image_size=12", "--image-size")),
        (("--network", "small"), ("--block-out-channels", "has no effect here; allowed: without --network")),
        (("--label-dropout", "0.5"), ("--label-dropout", "has no effect here; allowed: with --classes")),
        (("--set", "held_out=0.1"), ("--set held_out=0.1", "has no effect")),
        (("--set", "partition=iid"), ("--set partition=iid", "has no effect")),
        (("--save-every", "nan"), ("--save-every nan", "seconds from 0")),
        (("--lr", "nan"), ("--lr nan",)),
        (("--device", "tpu"), ("--device tpu", "not on this machine")),
        (("--lr", "1e30"), ("--lr 1e+30", "lower it")),
        (("--lr", "1e300"), ("--lr 1e+300", "less than or equal to")),
        (("--crops", "100000"), ("100000", "less than or equal to 64")),
        (("--batch-size", "100000000000000"), ("--batch-size 100000000000000", "less than or equal to 65536")),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], complaint: tuple[str, ...]
) -> None:
    result = train(tmp_path / "new" / "file", "--steps", "3", *arguments)
    assert_refused(result, *complaint)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_images_without_classes_are_told_no_class(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    assert_refused(train(tmp_path / "out", "--data", str(tmp_path), "--classes"), "--classes", "the images have none")


def options(**more: Any) -> module.PriorTraining:
    return module.parse_training(source={"data": "bundled"}, steps=1000, **more)


def test_the_learning_rate_warms_up_and_decays() -> None:
    rates = [options(lr=0.1, warm_up_steps=10).learning_rate(step) for step in (0, 9, 500, 999)]
    assert rates == pytest.approx([0.01, 0.1, 0.05, 0.0], abs=1e-4)
