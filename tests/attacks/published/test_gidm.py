import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from attacks.attack import AttackError
from attacks.inversion.gradient_matching import match_pixels
from attacks.inversion.problem import InversionProblem
from attacks.published.ddim_prior import load_prior
from attacks.published.gidm import GIDM, RECIPES, Phases, through_prior
from attacks.registry import create
from fl_sim import network
from tests.attacks.conftest import MODEL, SHAPE, Victim, make_classification_victim, make_victim
from tests.attacks.finite_differences import assert_derivative, double_problem


def test_started_at_the_truth_both_phases_stay_there(imagined, short_recipe):
    victim, latent = imagined
    matching = match_pixels(InversionProblem(victim.observation, "cpu"), "one-sided")
    for phases, start in (("latent", latent), ("pixels", victim.images)):
        (found,) = GIDM(phases=phases).two_phases(matching, [start])
        assert matching.value([found]) < 1e-9
        torch.testing.assert_close(found, victim.images, rtol=0, atol=1e-3)


def test_the_second_phase_starts_where_the_first_one_ended(imagined, short_recipe):
    victim, latent = imagined
    matching = match_pixels(InversionProblem(victim.observation, "cpu"), "one-sided")
    (found,) = GIDM().two_phases(matching, [latent])
    assert matching.value([found]) < 1e-9


def test_the_derivative_goes_through_the_sampler():
    victim = make_victim(known=True)
    problem = double_problem(victim.observation)
    objective = through_prior(match_pixels(problem, "double-backward"), load_prior(problem, "global", steps=3))
    assert_derivative(objective, [(1, *SHAPE)], relative=1e-3, step=1e-6)


def test_it_finds_the_image(monkeypatch, known_victim):
    recipe = Phases(sampler_steps=2, latent_iterations=10, pixel_iterations=250, lr=0.1, solved_below=1e-7)
    monkeypatch.setitem(RECIPES, "short", recipe)
    result = create("gidm").reconstruct(known_victim.observation, seed=101)
    assert known_victim.psnr(result.images) > 40
    assert result.timesteps.tolist() == [400]


def test_the_first_phase_alone_finds_an_image_that_the_prior_makes(monkeypatch, imagined):
    victim, _ = imagined
    recipe = Phases(sampler_steps=2, latent_iterations=80, pixel_iterations=1, lr=0.1, solved_below=None)
    monkeypatch.setitem(RECIPES, "short", recipe)
    start, result = (
        create("gidm", {"phases": phases}).reconstruct(victim.observation, seed=101) for phases in ("pixels", "latent")
    )
    assert victim.psnr(start.images) < 15
    assert victim.psnr(result.images) > 21


def test_the_published_recipe_is_the_papers():
    assert RECIPES["published"] == Phases(16, 2501, 5001, lr=0.01, solved_below=None)


@pytest.mark.parametrize(("phases", "evaluations"), [("both", 25), ("latent", 5), ("pixels", 20)])
def test_the_phases_can_be_had_one_by_one(short_recipe, known_victim, phases, evaluations):
    result = create("gidm", {"phases": phases}).reconstruct(known_victim.observation, seed=101)
    assert result.evaluations == evaluations + 1


def test_iterations_can_be_given_in_place_of_the_recipes(short_recipe, known_victim):
    given = create("gidm", {"latent_iterations": 2, "pixel_iterations": 3})
    assert given.reconstruct(known_victim.observation, seed=101).evaluations == 2 + 3 + 1


def test_the_memory_of_the_samplers_steps_counts(known_victim):
    latent, pixels = create("gidm"), create("gidm", {"phases": "pixels"})
    assert latent.further_memory(known_victim.observation) > 0 == pixels.further_memory(known_victim.observation)


def save_checkpoint(path: Path, victim: Victim, **facts: Any) -> str:
    circumstances = victim.observation.circumstances
    about = {"model": circumstances.model, "scheduler": circumstances.task.scheduler} | facts
    save_file(victim.observation.weights, path, metadata={"checkpoint": json.dumps(about)})
    return str(path)


def test_a_checkpoint_serves_as_the_prior(tmp_path, short_recipe, known_victim):
    def attack(prior: str) -> Tensor:
        return create("gidm", {"prior": prior}).reconstruct(known_victim.observation, seed=101).images

    same = save_checkpoint(tmp_path / "same", known_victim)
    other = save_checkpoint(tmp_path / "other", make_victim(seed=5))
    assert torch.equal(attack(same), attack("global"))
    assert not torch.equal(attack(other), attack("global"))


def save_classes(path: Path, victim: Victim) -> str:
    """The checkpoint of a network with class labels."""
    model = MODEL | {"num_class_embeds": 10}
    about = {"model": model, "scheduler": victim.observation.circumstances.task.scheduler}
    save_file(network.build_model(model).state_dict(), path, metadata={"checkpoint": json.dumps(about)})
    return str(path)


def test_a_prior_that_does_not_serve_is_one_line(tmp_path, known_victim):
    known_victim.observation.save(tmp_path / "capture")
    (tmp_path / "truncated").write_bytes(b"12345678")
    wrong = {
        str(tmp_path / "nothing"): "no usable checkpoint: there is no such file",
        str(tmp_path / "capture"): "it is a capture",
        str(tmp_path / "truncated"): "no whole safetensors file",
        str(tmp_path): "it is a folder",
        save_checkpoint(tmp_path / "size", known_victim, model=MODEL | {"sample_size": 16}): "16x16 pixels, not of 8x8",
        save_checkpoint(tmp_path / "net", known_victim, model=MODEL | {"layers_per_block": 2}): "is missing",
        save_classes(tmp_path / "classes", known_victim): r"takes class labels \(num_class_embeds = 10\)",
        save_checkpoint(tmp_path / "class", known_victim, model=MODEL | {"_class_name": "VQModel"}): "not allowed",
    }
    for path, message in wrong.items():
        with pytest.raises(AttackError, match=message) as caught:
            create("gidm", {"prior": path}).reconstruct(known_victim.observation, seed=101)
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_classifier_needs_a_prior_of_its_own(tmp_path, short_recipe, known_victim):
    victim = make_classification_victim((3,), classifier="ConvNet")
    with pytest.raises(AttackError, match=r"^attack 'gidm': prior = 'global' names .* a classifier; allowed: the path"):
        create("gidm").reconstruct(victim.observation, seed=101)
    prior = save_checkpoint(tmp_path / "prior", known_victim)
    result = create("gidm", {"prior": prior}).reconstruct(victim.observation, seed=101)
    assert (result.evaluations, result.labels.tolist()) == (26, [3])
