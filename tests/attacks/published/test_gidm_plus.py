from dataclasses import replace

import pytest
import torch

from attacks.attack import AttackError
from attacks.inversion.problem import InversionProblem
from attacks.published import gidm_plus
from attacks.published.gidm import RECIPES, Phases
from attacks.published.gidm_plus import GIDMPlus, match_everything, real_timesteps
from attacks.registry import create
from fl_sim import diffusion
from tests.attacks.conftest import MODEL, SHAPE, make_victim
from tests.attacks.finite_differences import assert_derivative, double_problem


def relax(timesteps: torch.Tensor) -> torch.Tensor:
    return (timesteps / 999).logit()


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_started_at_the_truth_the_pixel_phase_stays_there(prediction_type, short_recipe):
    victim = make_victim((150, 640), prediction_type=prediction_type)
    problem = InversionProblem(victim.observation, "cpu")
    matching = match_everything(problem, "one-sided")
    truth = [victim.images, victim.noise, relax(victim.timesteps)]
    images, noise, relaxed = GIDMPlus(phases="pixels").two_phases(matching, truth)
    assert matching.value([images, noise, relaxed]) < 1e-6
    torch.testing.assert_close(images, victim.images, rtol=0, atol=1e-3)
    torch.testing.assert_close(noise, victim.noise, rtol=0, atol=1e-3)
    assert torch.equal(real_timesteps(problem, relaxed).round().long(), victim.timesteps)


def test_started_at_the_truth_the_latent_phase_stays_there(imagined, short_recipe):
    victim, latent = imagined
    matching = match_everything(InversionProblem(victim.observation, "cpu"), "one-sided")
    found = GIDMPlus(phases="latent").two_phases(matching, [latent, victim.noise, relax(victim.timesteps)])
    assert matching.value(found) < 1e-6
    torch.testing.assert_close(found[0], victim.images, rtol=0, atol=1e-3)


def test_image_noise_and_timestep_have_the_derivative_of_the_loss(victim):
    matching = match_everything(double_problem(victim.observation), "double-backward")
    # diffusers embeds a timestep in float32, which a shorter step would drown in.
    assert_derivative(matching, [(1, *SHAPE), (1, *SHAPE), (1,)], relative=1e-2, step=1e-4)


def test_from_nearby_it_comes_close_to_the_image(monkeypatch):
    recipe = Phases(sampler_steps=2, latent_iterations=1, pixel_iterations=150, lr=0.01, solved_below=None)
    monkeypatch.setitem(RECIPES, "short", recipe)
    victim = make_victim(prediction_type="sample")
    generator = torch.Generator().manual_seed(3)
    near = [truth + 0.3 * torch.randn(truth.shape, generator=generator) for truth in (victim.images, victim.noise)]
    matching = match_everything(InversionProblem(victim.observation, "cpu"), "one-sided")
    images, *_ = GIDMPlus(phases="pixels").two_phases(matching, [*near, relax(victim.timesteps + 20)])
    before, after = (victim.psnr((found + 1) / 2) for found in (near[0], images))
    assert before < 17
    assert after > 27


def test_from_noise_it_finds_image_noise_and_timestep_together(monkeypatch):
    recipe = Phases(sampler_steps=2, latent_iterations=1, pixel_iterations=600, lr=0.1, solved_below=1e-8)
    monkeypatch.setitem(RECIPES, "short", recipe)
    victim = make_victim((200,), prediction_type="sample")
    result = create("gidm-plus", {"phases": "pixels"}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 35
    assert abs(int(result.timesteps) - 200) < 10


def test_every_unknown_is_moved(monkeypatch, victim):
    recipe = Phases(sampler_steps=2, latent_iterations=3, pixel_iterations=3, lr=0.1, solved_below=None)
    monkeypatch.setitem(RECIPES, "short", recipe)
    matching = match_everything(InversionProblem(victim.observation, "cpu"), "one-sided")
    generator = torch.Generator().manual_seed(4)
    start = [torch.randn(shape, generator=generator) for shape in ((1, *SHAPE), (1, *SHAPE), (1,))]
    for phases in ("latent", "pixels"):
        found = GIDMPlus(phases=phases).two_phases(matching, start)
        assert not any(torch.equal(before, after) for before, after in zip(start, found, strict=True))


def test_it_makes_no_use_of_what_the_server_dictated_or_can_read_off(monkeypatch, short_recipe, known_victim):
    monkeypatch.setattr(gidm_plus, "timestep_hypotheses", lambda _: pytest.fail("timesteps were read off"))
    private = replace(known_victim.observation, noise=None, timesteps=None)
    results = [create("gidm-plus").reconstruct(seen, seed=101) for seen in (known_victim.observation, private)]
    assert torch.equal(results[0].images, results[1].images)
    assert torch.equal(results[0].timesteps, results[1].timesteps)


def test_it_lowers_the_matching_loss_and_reports_a_whole_timestep(short_recipe, victim):
    few = create("gidm-plus", {"phases": "latent"}).reconstruct(victim.observation, seed=101)
    more = create("gidm-plus").reconstruct(victim.observation, seed=101)
    assert more.matching_loss < few.matching_loss
    assert more.evaluations == 26
    assert more.timesteps.dtype == torch.int64
    assert 0 <= int(more.timesteps) <= 999


def test_recovered_timesteps_are_for_ablation(short_recipe, victim):
    result = create("gidm-plus", {"timestep": "recovered"}).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [400]


def test_a_learned_embedding_cannot_be_relaxed():
    learned = MODEL | {"time_embedding_type": "learned", "num_train_timesteps": 1000}
    victim = make_victim(model_config=learned)
    with pytest.raises(AttackError, match="timestep = 'search' needs a time embedding of real numbers"):
        create("gidm-plus").reconstruct(victim.observation, seed=101)


def test_relaxed_timesteps_stay_within_the_schedule(victim):
    problem = InversionProblem(victim.observation, "cpu")
    extremes = real_timesteps(problem, torch.tensor([-1e9, 0.0, 1e9]))
    assert extremes.tolist() == [0.0, 499.5, 999.0]
