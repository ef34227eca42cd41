import pytest
import torch

from attacks.attack import AttackError
from attacks.inversion.gradient_matching import match_pixels
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.registry import create
from fl_sim.diffusion import PREDICTION_TYPES
from tests.attacks.conftest import SHAPE, assert_sum_like_batch, make_classification_victim, make_victim
from tests.attacks.finite_differences import assert_derivative, double_problem


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_started_at_the_truth_it_stays_there(prediction_type):
    victim = make_victim((80, 600), prediction_type=prediction_type, known=True)
    matching = match_pixels(InversionProblem(victim.observation, "cpu"), "one-sided")
    run = LBFGSRun(matching, [victim.images])
    assert run.advance(10) < 1e-9
    torch.testing.assert_close(run.point[0].detach(), victim.images, rtol=0, atol=1e-3)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_pixels_have_the_derivative_of_the_loss(prediction_type):
    victim = make_victim((80, 600), prediction_type=prediction_type, known=True)
    matching = match_pixels(double_problem(victim.observation), "double-backward")
    assert_derivative(matching, [(2, *SHAPE)], relative=1e-4, step=1e-5)


def test_it_finds_every_image_of_a_batch():
    victim = make_victim((450, 120), known=True)
    result = create("dlg", {"solved_below": 1e-6}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 40
    assert result.timesteps.tolist() == [450, 120]


def test_the_images_of_a_sum_of_clients_are_found_like_those_of_their_batch():
    seen = make_victim((450, 120), known=True).observation
    assert_sum_like_batch(create("dlg", {"max_evaluations": 20}), seen, [450, 120])


def test_the_search_ends_with_the_budget(known_victim):
    result = create("dlg", {"max_evaluations": 25}).reconstruct(known_victim.observation, seed=101)
    assert 20 <= result.evaluations <= 30


def test_the_search_ends_when_it_is_solved(known_victim):
    result = create("dlg", {"solved_below": 1e-2}).reconstruct(known_victim.observation, seed=101)
    assert result.evaluations < 60


@pytest.mark.parametrize("labels", ["recovered", "optimised"])
def test_it_finds_the_image_and_the_label_of_a_classifier(labels):
    victim = make_classification_victim((3,))
    result = create("dlg", {"labels": labels}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 60
    assert (result.labels.tolist(), result.timesteps.tolist()) == ([3], [-1])


def test_revealed_labels_keep_their_order():
    victim = make_classification_victim((7, 2), known=True)
    result = create("dlg", {"max_evaluations": 20}).reconstruct(victim.observation, seed=101)
    assert result.labels.tolist() == [7, 2]


def test_the_best_of_several_starts_counts():
    victim = make_classification_victim((3,))
    one, two = (
        create("dlg", {"starts": starts, "max_evaluations": 60, "slice_evaluations": 10, "solved_below": 1e-30})
        .reconstruct(victim.observation, seed=101)
        .matching_loss
        for starts in (1, 2)
    )
    assert two <= one


def test_labels_are_optimised_for_classifiers_alone(known_victim):
    with pytest.raises(AttackError, match=r"^attack 'dlg': labels = 'optimised' is for classifiers .*'recovered'$"):
        create("dlg", {"labels": "optimised"}).reconstruct(known_victim.observation, seed=101)
