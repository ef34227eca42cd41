import pytest
import torch

from attacks.inversion.entry_weights import matching_distance
from attacks.inversion.gradient_matching import GradientMatching
from attacks.inversion.image_prior import natural_image_energy
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.residual.unknowns import CleanImage, NoisyImageAndResidual, expected_residual, possible_unknowns
from fl_sim import diffusion
from tests.attacks.conftest import make_victim, true_unknowns
from tests.attacks.finite_differences import assert_derivative, to_double
from tests.attacks.residual.candidates import WIDE, matching_of


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_started_at_the_truth_it_stays_there(prediction_type):
    victim = make_victim((80, 600), prediction_type=prediction_type, model_config=WIDE)
    [unknowns] = possible_unknowns(InversionProblem(victim.observation, "cpu"))
    assert torch.equal(unknowns.timesteps, victim.timesteps)
    run = LBFGSRun(matching_of(unknowns), true_unknowns(unknowns, victim))
    assert run.advance(10) < 1e-9
    torch.testing.assert_close(unknowns.images(run.point), victim.images, rtol=0, atol=1e-3)


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
@pytest.mark.parametrize("known", [False, True], ids=["private", "known"])
def test_the_truth_explains_a_weighted_loss_and_offset_noise(prediction_type, known):
    recipe = {"min_snr_gamma": 5.0, "noise_offset": 0.3}
    victim = make_victim((20, 600), prediction_type=prediction_type, model_config=WIDE, known=known, **recipe)
    for unknowns in possible_unknowns(InversionProblem(victim.observation, "cpu")):
        clean = isinstance(unknowns, CleanImage)
        truth = [victim.images / unknowns.image_scale] if clean else true_unknowns(unknowns, victim)
        assert matching_of(unknowns).value(truth) < 1e-9
        torch.testing.assert_close(unknowns.images(truth), victim.images, rtol=0, atol=1e-3)
        assert torch.equal(unknowns.timesteps, victim.timesteps)


def test_a_sample_that_its_weight_hides_leaves_the_other_one_in_its_units():
    recipe = {"prediction_type": "v_prediction", "min_snr_gamma": 5.0, "zero_snr": True, "known": True}
    victim = make_victim((600, 999), model_config=WIDE, **recipe)
    for unknowns in possible_unknowns(InversionProblem(victim.observation, "cpu")):
        point = unknowns.draw(torch.Generator().manual_seed(1), 0.3, 0.3)
        value, derivatives = matching_of(unknowns)([part.requires_grad_() for part in point])
        assert value.isfinite()
        for derivative in derivatives:
            assert derivative[0].any()
            assert not derivative[1].any()
        assert unknowns.images(point).isfinite().all()


def test_offset_noise_is_as_probable_as_it_is():
    victim = make_victim((200,), noise_offset=0.5)
    [unknowns] = possible_unknowns(InversionProblem(victim.observation, "cpu"))
    assert isinstance(unknowns, NoisyImageAndResidual)
    energy = float(unknowns.energy(true_unknowns(unknowns, victim)).detach() - natural_image_energy(victim.images))
    means = victim.noise.mean(dim=(2, 3), keepdim=True)
    pixels = victim.noise[0, 0].numel()
    expected = (victim.noise - means).square().sum() + pixels * means.square().sum() / (1 + pixels * 0.25)
    assert energy == pytest.approx(float(expected), rel=1e-2)


def test_started_at_the_known_truth_it_stays_there(known_victim):
    clean, noisy = possible_unknowns(InversionProblem(known_victim.observation, "cpu"))
    truths = [known_victim.images / clean.image_scale], true_unknowns(noisy, known_victim)
    for unknowns, truth in zip((clean, noisy), truths, strict=True):
        run = LBFGSRun(matching_of(unknowns), truth)
        assert run.advance(10) < 1e-9
        torch.testing.assert_close(unknowns.images(run.point), known_victim.images, rtol=0, atol=1e-3)


def test_the_expected_residual_is_of_the_size_of_the_true_one():
    victim = make_victim((50, 900), prediction_type="sample", model_config=WIDE)
    [unknowns] = possible_unknowns(InversionProblem(victim.observation, "cpu"))
    residual = true_unknowns(unknowns, victim)[1] * unknowns.residual_scale / unknowns.expected_residual
    rms = residual.square().mean(dim=(1, 2, 3)).sqrt()
    assert ((rms > 0.5) & (rms < 2)).all()
    assert expected_residual(unknowns.problem, unknowns.timesteps).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
@pytest.mark.parametrize("kind", [NoisyImageAndResidual, CleanImage])
def test_the_derivative_is_the_difference_of_values(kind, prediction_type):
    victim = make_victim((80, 600), prediction_type=prediction_type, known=True)
    problem = InversionProblem(victim.observation, "cpu")
    unknowns = next(unknowns for unknowns in possible_unknowns(problem) if isinstance(unknowns, kind))
    to_double(problem)
    for derivative, relative in (("double-backward", 1e-5), ("central", 1e-4), ("one-sided", 1e-2)):
        matching = GradientMatching(problem, unknowns.training_loss, matching_distance(problem, 1.5), derivative)
        shapes = [tuple(victim.images.shape)] * len(unknowns.origin())
        assert_derivative(matching, shapes, relative, step=1e-5)


def test_a_late_sample_starts_with_a_small_residual(monkeypatch):
    sizes = torch.tensor([1.0, 0.04]).view(-1, 1, 1, 1)  # as of a trained model
    monkeypatch.setattr("attacks.residual.unknowns.expected_residual", lambda *_: sizes)
    [unknowns] = possible_unknowns(InversionProblem(make_victim((20, 900), model_config=WIDE).observation, "cpu"))
    _, residual = unknowns.noisy_images_and_residuals(unknowns.draw(torch.Generator().manual_seed(1), 0.3, 0.5))
    started = residual.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(started, 0.5 * sizes, rtol=0.2, atol=0)


def test_permuted_samples_keep_their_images_and_the_size_of_the_residual_for_the_timestep():
    victim = make_victim((20, 300, 600), model_config=WIDE)
    [unknowns] = possible_unknowns(InversionProblem(victim.observation, "cpu"))
    truth = true_unknowns(unknowns, victim)
    before = unknowns.noisy_images_and_residuals(truth)
    after = unknowns.noisy_images_and_residuals(unknowns.permuted(truth, torch.tensor([1, 2, 0])))
    torch.testing.assert_close(after[0][[1, 2, 0]], before[0])
    sizes = [residual / unknowns.expected_residual for residual in (before[1], after[1])]
    torch.testing.assert_close(sizes[1][[1, 2, 0]], sizes[0])


def test_unknowns_of_another_problem_or_without_timesteps_leave_the_old_ones_alone(known_victim):
    problem = InversionProblem(known_victim.observation, "cpu")
    for unknowns in possible_unknowns(problem):
        other = unknowns.of_problem(problem.with_scale(torch.tensor(2.0)))
        assert other.problem is not problem
        assert unknowns.problem is problem
        assert (unknowns.without_claimed_timesteps().reported_timesteps == -1).all()
        assert torch.equal(unknowns.reported_timesteps, known_victim.timesteps)
