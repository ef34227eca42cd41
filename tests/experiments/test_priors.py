from pathlib import Path

import pytest
import torch
from typer.testing import Result

from experiments.attack_offline import attack_overrides
from experiments.checkpoint import load_checkpoint
from experiments.experiment import prepare
from experiments.package_data import BUNDLED_FILES, BUNDLED_PRIORS
from experiments.public_images import image_hashes
from experiments.settings import ExperimentSettings, load_run
from fl_sim.checkpoint import Checkpoint
from fl_sim.config import DataSettings
from fl_sim.diffusion import DiffusionTask, scheduler_config
from fl_sim.images.bundled import TRAINING_PHOTOGRAPHS
from fl_sim.images.sources import list_images
from fl_sim.network import build_model, unet_config
from fl_sim.settings_file import load_settings
from tests.experiments.test_cli import assert_refused, fl_sim

GIDM = ("threat=known", "attack.name=gidm")
DIGITS = ("data.name=digits", "data.channels=1", "data.partition=iid", "model.checkpoint=none", *GIDM)
TINY = unet_config(16, 1, (8, 8))


def a_prior(path: Path, **notes: object) -> str:
    weights = build_model(TINY).state_dict()
    Checkpoint(weights, TINY, DiffusionTask.on(scheduler_config()), notes).save(path)
    return f"attack.args.gidm.prior={path}"


def dry_run(*settings: str) -> Result:
    return fl_sim("run", "demo-16", "--dry-run", *(word for setting in settings for word in ("--set", setting)))


def digits(*indices: int) -> list[str]:
    return image_hashes(list_images(DataSettings(name="digits", image_size=16)).decode(indices, 1))


def test_a_prior_of_a_clients_images_is_refused(tmp_path: Path) -> None:
    prior = a_prior(tmp_path / "prior", sha256=digits(8, 10, 11))
    for held in (9, 12):
        result = dry_run(*DIGITS, prior, f"data.limit={held}")
        complaint = f"it was trained on {3 if held == 12 else 1} of the clients' images"
        assert_refused(result, f"attack.args.gidm.prior = '{tmp_path / 'prior'}'", complaint, "data.limit")


def test_a_prior_of_other_images_is_named_before_the_run(tmp_path: Path) -> None:
    listed = prepare(load_run("demo-16", [*DIGITS, a_prior(tmp_path / "prior", sha256=digits(8, 9)), "data.limit=8"]))
    assert "prior of gidm: trained on 2 images, none of which a client holds" in listed.describe()
    silent = prepare(load_run("demo-16", [*DIGITS, a_prior(tmp_path / "silent", sha256="?", photographs=3)]))
    assert "prior of gidm: its file does not say on which images it was trained" in silent.describe()


def test_a_photograph_that_it_was_trained_on_may_be_no_clients() -> None:
    bundled = (*GIDM, "attack.args.gidm.prior=bundled")
    result = dry_run(*bundled, 'data.photographs=["astronaut", "chelsea", "china", "coffee"]')
    assert_refused(result, "attack.args.gidm.prior = 'bundled': it was trained on china, of which clients hold tiles")
    photographs = ", ".join(TRAINING_PHOTOGRAPHS)
    assert f"prior of gidm: trained on photographs: {photographs}" in dry_run(*bundled).output


def test_a_prior_of_the_wrong_kind_is_the_attacks_to_refuse(tmp_path: Path) -> None:
    a_prior(tmp_path / "grey")
    for prior, complaint in (
        (tmp_path / "gone", "there is no such file"),
        (tmp_path / "grey", "1 channel"),
        ("photographs-32", "images of 32x32 pixels, not of 16x16"),
        ("~nobody-at-all/prior", "no usable checkpoint"),
    ):
        assert_refused(dry_run(*GIDM, f"attack.args.gidm.prior={prior}"), complaint)


@pytest.mark.parametrize("name", [*BUNDLED_FILES, *BUNDLED_PRIORS])
def test_a_bundled_prior_goes_by_its_name(name: str) -> None:
    path = str((BUNDLED_FILES | BUNDLED_PRIORS)[name])
    settings = load_run("demo-16", [*GIDM, f"attack.args.gidm.prior={name}"]).attack
    assert settings.args["gidm"] == {"prior": name}
    offline = load_settings(ExperimentSettings, {}, attack_overrides(["gidm"], [f"prior={name}"])).attack
    assert settings.arguments["gidm"] == offline.arguments["gidm"] == {"prior": path}
    assert load_checkpoint(Path(path)).image_shape is not None


def test_the_bundled_priors_are_small_and_say_what_they_were_trained_on() -> None:
    assert sum(path.stat().st_size for path in BUNDLED_PRIORS.values()) <= 8_000_000
    photographs, of_digits = (load_checkpoint(BUNDLED_PRIORS[name]) for name in ("photographs-32", "digits-16"))
    assert {photographs.dtype, of_digits.dtype} == {"float16"}
    assert photographs.notes["photographs"] == list(TRAINING_PHOTOGRAPHS)
    assert of_digits.notes["sha256"] == digits(*range(898, 1797))
    assert of_digits.notes["classes"] == [str(number) for number in range(10)]


def test_the_prior_of_photographs_has_the_weights_of_the_demos_checkpoint() -> None:
    demo = load_checkpoint(BUNDLED_FILES["bundled-32"]).weights
    for name, value in load_checkpoint(BUNDLED_PRIORS["photographs-32"]).weights.items():
        assert torch.equal(value, demo[name].half().float())
