import pytest
import torch

from attacks.attack import AttackError
from attacks.inversion.gradient_matching import cosine_distance, match_pixels
from attacks.inversion.problem import InversionProblem
from attacks.published.inverting_gradients import InvertingGradients, total_variation
from attacks.registry import create
from fl_sim.diffusion import PREDICTION_TYPES
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import SHAPE, make_classification_victim, make_victim
from tests.attacks.finite_differences import assert_derivative, double_problem


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_started_at_the_truth_it_stays_there(prediction_type):
    victim = make_victim((80, 600), prediction_type=prediction_type, known=True)
    problem = InversionProblem(victim.observation, "cpu")
    matching = match_pixels(problem, "one-sided", cosine_distance)
    found = InvertingGradients(iterations=8, total_variation=0).descend(matching, victim.images)
    assert matching.value([found]) < 1e-5
    torch.testing.assert_close(found, victim.images, rtol=0, atol=1e-3)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_pixels_have_the_derivative_of_the_cosine_distance(prediction_type):
    victim = make_victim((80, 600), prediction_type=prediction_type, known=True)
    matching = match_pixels(double_problem(victim.observation), "double-backward", cosine_distance)
    assert_derivative(matching, [(2, *SHAPE)], relative=1e-4, step=1e-5)


def test_it_finds_the_image(known_victim):
    result = create("inverting-gradients", {"iterations": 400}).reconstruct(known_victim.observation, seed=101)
    assert known_victim.psnr(result.images) > 25
    assert result.timesteps.tolist() == known_victim.timesteps.tolist()


def test_pixels_stay_within_their_range_and_the_step_decays(known_victim):
    problem = InversionProblem(known_victim.observation, "cpu")
    seen = []

    def objective(unknowns):
        seen.append(unknowns[0].detach().clone())
        return torch.tensor(float(-len(seen))), [-torch.ones_like(unknowns[0])]

    start = torch.full((1, *problem.image_shape), -1.0)
    InvertingGradients(iterations=80, lr=0.01, total_variation=0).descend(objective, start)
    steps = torch.stack(seen).diff(dim=0).amax(dim=(1, 2, 3, 4))
    assert steps[5] == pytest.approx(0.01, rel=1e-3)
    assert steps[-1] == pytest.approx(1e-5, rel=2e-2)
    InvertingGradients(iterations=80, lr=1.0, total_variation=0).descend(objective, start)
    assert max(float(images.abs().max()) for images in seen) == 1.0


def test_total_variation_of_a_step_edge():
    images = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert total_variation(images) == 1.0
    assert total_variation(torch.ones(1, 3, 4, 4)) == 0.0


def test_it_refuses_private_noise(victim):
    with pytest.raises(AttackError, match="needs noise and timesteps"):
        create("inverting-gradients").reconstruct(victim.observation, seed=101)


def test_it_finds_the_image_and_the_label_of_a_classifier():
    victim = make_classification_victim((3,), classifier="ConvNet")
    result = create("inverting-gradients", {"iterations": 300}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 25
    assert result.labels.tolist() == [3]


def test_several_local_steps_are_simulated():
    """With steps this large, matching the mean gradient at the weights sent would end far from the images."""
    victim = make_classification_victim((3, 8), local_steps=2, optimizer=LocalOptimizer(lr=0.3), known=True)
    problem = InversionProblem(victim.observation, "cpu")
    attack = InvertingGradients(iterations=8)
    assert attack.matching(problem, problem.labels).value([victim.images]) < 1e-6
    assert match_pixels(problem, "one-sided", cosine_distance, problem.labels).value([victim.images]) > 1e-4


def test_every_start_deals_recovered_labels_to_the_steps_anew(monkeypatch):
    victim = make_classification_victim((3, 8), local_steps=2, optimizer=LocalOptimizer(lr=0.01))
    dealt = []
    matching = InvertingGradients.matching

    def note(self, problem, labels):
        dealt.append(tuple(labels.tolist()))
        return matching(self, problem, labels)

    monkeypatch.setattr(InvertingGradients, "matching", note)
    result = create("inverting-gradients", {"iterations": 8, "starts": 6}).reconstruct(victim.observation, seed=101)
    assert dealt[0] == (3, 8)
    assert set(dealt) == {(3, 8), (8, 3)}
    assert tuple(result.labels.tolist()) in dealt
    assert result.evaluations == 6 * (8 + 1)


def test_the_published_recipe_is_the_papers():
    assert InvertingGradients(recipe="published").iterations_of_a_start == 24_000
    assert InvertingGradients(recipe="published", iterations=8).iterations_of_a_start == 8
