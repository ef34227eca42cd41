"""``fl-sim invert``."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from attacks.model_inversion.diff_mi import DiffMI
from attacks.model_inversion.reconstructions_file import load_reconstructions
from attacks.model_inversion.target import TrainedClassifier
from attacks.observation import Circumstances, Observation
from experiments.invert_offline import read_classifier, read_public
from fl_sim.checkpoint import Checkpoint
from fl_sim.classification import ClassificationTask
from fl_sim.diffusion import DiffusionTask, scheduler_config
from fl_sim.draws import derive_seed
from fl_sim.network import build_model, unet_config
from fl_sim.task import Task
from tests.attacks.toy_attacks import tiny_observation
from tests.experiments.test_cli import assert_refused, fl_sim

CONFIG = {"_class_name": "ConvNet", "num_classes": 2, "image_size": [12, 12], "in_channels": 1, "channels": [4]}
SHORT = {"images_per_class": 2, "variant": "public-images"}
ARGUMENTS = [word for key, value in SHORT.items() for word in ("--set", f"{key}={value}")]


def save_model(path: Path, model: dict[str, Any], task: Task) -> Path:
    torch.manual_seed(0)
    Checkpoint(build_model(model).state_dict(), model, task, {}).save(path)
    return path


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return save_model(tmp_path / "classifier.safetensors", CONFIG, ClassificationTask(num_classes=2))


@pytest.fixture
def public(tmp_path: Path) -> Path:
    folder = tmp_path / "public"
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    for number in range(5):
        pixels = torch.randint(256, (12, 12), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_checkpoint_is_inverted_as_the_library_does(tmp_path: Path, classifier: Path, public: Path) -> None:
    out = tmp_path / "out"
    result = fl_sim("invert", classifier, "--public", public, "--seed", "7", *ARGUMENTS, "--out", out)
    assert result.exit_code == 0, result.output
    assert "2 classes with 2 images each, from 5 public images" in " ".join(result.output.split())
    found = load_reconstructions(out / "reconstructions.safetensors")
    torch.manual_seed(0)
    trained = TrainedClassifier(CONFIG, build_model(CONFIG).state_dict())
    seed = derive_seed(7, "inversion", "diff-mi")
    expected = DiffMI(**SHORT).reconstruct(trained, read_public(public, (1, 12, 12)), seed)
    assert torch.equal(found.images, expected.images)
    assert (found.method, found.seed, found.settings) == ("diff-mi", seed, expected.settings)
    assert Image.open(out / "reconstructions.png").size == (8 * 25, 8 * 25)


def test_a_capture_holds_the_global_classifier(tmp_path: Path, public: Path) -> None:
    torch.manual_seed(0)
    weights = build_model(CONFIG).state_dict()
    circumstances = Circumstances(
        task=ClassificationTask(num_classes=2), round=1, client=0, image_shape=(1, 12, 12), model=CONFIG
    )
    Observation(circumstances, weights, {name: value + 1 for name, value in weights.items()}).save(
        tmp_path / "a.safetensors"
    )
    classifier, shape = read_classifier(tmp_path / "a.safetensors")
    assert shape == (1, 12, 12)
    assert all(torch.equal(value, weights[name]) for name, value in classifier.weights.items())
    result = fl_sim("invert", tmp_path / "a.safetensors", "--public", public, *ARGUMENTS, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_what_is_no_classifier_is_one_line(tmp_path: Path, classifier: Path, public: Path) -> None:
    options = ("--public", public, "--out", tmp_path / "out")
    unet = unet_config(8, block_out_channels=(8, 8), norm_num_groups=4)
    diffusion = save_model(tmp_path / "ddpm.safetensors", unet, DiffusionTask.on(scheduler_config()))
    assert_refused(
        fl_sim("invert", diffusion, *options), "ddpm.safetensors", "task 'diffusion'", "allowed: a classifier"
    )
    tiny_observation().save(tmp_path / "capture.safetensors")
    assert_refused(fl_sim("invert", tmp_path / "capture.safetensors", *options), "task 'diffusion'")
    (tmp_path / "text.safetensors").write_text("hello")
    assert_refused(fl_sim("invert", tmp_path / "text.safetensors", *options), "no whole safetensors file")
    assert_refused(fl_sim("invert", tmp_path / "gone.safetensors", *options), "gone.safetensors", "no such file")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert_refused(fl_sim("invert", tmp_path / "other.safetensors", *options), "no 'checkpoint'")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_used_is_one_line_and_leaves_nothing(tmp_path: Path, classifier: Path, public: Path) -> None:
    out = ("--out", tmp_path / "out")
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "a.png").write_text("no picture")
    for folder, complaint in ((tmp_path / "gone", "no such folder"), (empty, "no images"), (broken, "can be read")):
        assert_refused(fl_sim("invert", classifier, "--public", folder, *out), f"--public '{folder}'", complaint)
    use = ("invert", classifier, "--public", public, *out)
    assert_refused(fl_sim(*use, "--method", "diff-my"), "'diff-my': unknown", "did you mean 'diff-mi'?")
    assert_refused(fl_sim(*use, "--set", "image_search.iteration=3"), "iteration = 3", "did you mean 'iterations'?")
    assert_refused(fl_sim(*use, "--set", "classes=[5]"), "classes = 5; the classifier has 2")
    blurred = "image_search.augmentation={blur_radius=100, blur_probability=1.0}"
    assert_refused(fl_sim(*use, "--set", blurred), "blur_radius = 100: the images' shorter side")
    assert_refused(fl_sim(*use, "--set", "images_per_class"), "expected key=value")
    assert_refused(fl_sim(*use, "--device", "tpu"), "--device tpu")
    assert not (tmp_path / "out").exists()


def test_the_list_shows_every_method() -> None:
    shown = " ".join(fl_sim("list").output.split())
    assert "model inversion" in shown
    assert "A target-specific diffusion prior and the classifier's margin, step by step in turn." in shown


def test_no_code_is_imported_that_is_not_trusted(tmp_path: Path, public: Path) -> None:
    path = tmp_path / "own.safetensors"
    facts = {"model": {"_factory": "tests.experiments.exits:build"}, "task": "classification", "num_classes": 2}
    save_file({"a": torch.zeros(1)}, path, metadata={"checkpoint": json.dumps(facts)})
    result = fl_sim("invert", path, "--public", public, "--out", tmp_path / "out")
    assert_refused(result, "imported only where it is trusted by name")
