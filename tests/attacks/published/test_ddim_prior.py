from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from attacks.attack import AttackError
from attacks.inversion.problem import InversionProblem
from attacks.published.ddim_prior import load_prior, read_prior
from fl_sim.checkpoint import Checkpoint
from fl_sim.diffusion import DiffusionTask, scheduler_config
from fl_sim.network import build_model
from tests.attacks.conftest import CLASS_CONDITIONAL, MODEL, SHAPE, make_classification_victim, make_victim

LATENTS = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(7))


def checkpoint(model: dict, **notes: float) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(build_model(model).state_dict(), model, DiffusionTask.on(scheduler_config()), notes)


def images(source: Path, observation, labels: Tensor | None = None) -> Tensor:
    return load_prior(InversionProblem(observation, "cpu"), str(source), 2, labels)(LATENTS)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    checkpoint(MODEL).save(tmp_path / "plain")
    return tmp_path / "plain"


def test_a_file_of_16_bits_is_the_same_prior_but_for_rounding(tmp_path, plain, known_victim):
    own = checkpoint(MODEL)
    replace(own, weights={name: value.half() for name, value in own.weights.items()}).save(tmp_path / "half")
    found, whole = (images(tmp_path / name, known_victim.observation) for name in ("half", "plain"))
    assert not torch.equal(found, whole)
    torch.testing.assert_close(found, whole, rtol=0.01, atol=0.1)


@pytest.mark.parametrize("form", ["pipeline", "model", "shards"])
def test_a_folder_that_diffusers_saved_is_a_prior(tmp_path, plain, known_victim, form):
    own = checkpoint(MODEL)
    network = own.build()
    if form == "pipeline":
        scheduler = diffusers.DDIMScheduler.from_config(own.diffusion.scheduler)
        diffusers.DDIMPipeline(network, scheduler).save_pretrained(tmp_path / form)
    else:
        network.save_pretrained(tmp_path / form, max_shard_size="60KB" if form == "shards" else "1GB")
    assert torch.equal(images(tmp_path / form, known_victim.observation), images(plain, known_victim.observation))


def test_a_conditional_prior_is_told_the_images_labels_and_else_its_null_class(tmp_path, known_victim):
    for rows in (11, 6):
        checkpoint(MODEL | {"num_class_embeds": rows}, label_dropout=0.1).save(tmp_path / f"{rows}")
    diffusing = make_victim(known=True, model_config=CLASS_CONDITIONAL, labels=(7,)).observation
    classifying = make_classification_victim((7,), classifier="ConvNet").observation

    def told(rows: int, observation, labels: Tensor | None = None) -> list[int]:
        problem = InversionProblem(observation, "cpu")
        return load_prior(problem, str(tmp_path / f"{rows}"), 2, labels).labels.tolist()

    seven = torch.tensor([7])
    assert told(11, diffusing, seven) == told(11, classifying, seven) == [7]
    assert told(6, diffusing, seven) == told(6, classifying, seven) == [5]
    assert (told(11, known_victim.observation), told(6, known_victim.observation)) == ([10], [5])
    unlabelled = images(tmp_path / "11", known_victim.observation)
    assert not torch.equal(images(tmp_path / "11", diffusing, seven), unlabelled)


def test_a_conditional_prior_without_null_class_needs_as_many_classes(tmp_path, known_victim):
    checkpoint(CLASS_CONDITIONAL).save(tmp_path / "prior")
    assert read_prior(str(tmp_path / "prior"), SHAPE, 10).model == CLASS_CONDITIONAL
    refused = r"num_class_embeds = 10.* allowed: as many, none, or one that was trained"
    for classes in (None, 9):
        with pytest.raises(AttackError, match=refused):
            read_prior(str(tmp_path / "prior"), SHAPE, classes)
