import pytest
import torch

from attacks.inversion.problem import InversionProblem
from attacks.observation import DefenceDisclosure
from attacks.residual.sample_diagnostics import (
    best_permutation,
    cosine_matrix,
    sample_misfits,
    sample_vectors,
    unexplained_energy,
)
from attacks.timesteps.recovery import timestep_hypotheses
from fl_sim import diffusion
from tests.attacks.conftest import MODEL, make_victim

WIDE = MODEL | {"block_out_channels": (32, 32)}
TIMESTEPS = (50, 300, 700)


@pytest.fixture(scope="module")
def batch():
    victim = make_victim(TIMESTEPS, model_config=WIDE)
    return victim, InversionProblem(victim.observation, "cpu")


def vectors(problem, gradient):
    """Of the samples in ``gradient``, and in the observed one."""
    return sample_vectors(problem, timestep_hypotheses(problem)[0].timesteps, gradient)


def test_a_large_sample_that_is_a_little_wrong_misses_more_than_a_small_lost_one():
    observed = torch.tensor([[10.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    own = torch.tensor([[0.9, 1.0], [0.4, 0.0]], dtype=torch.float64)
    assert sample_misfits(own, observed)[0] < sample_misfits(own, observed)[1]
    assert unexplained_energy(own, observed)[0] > unexplained_energy(own, observed)[1]


def test_the_truth_fits(batch):
    victim, problem = batch
    again = diffusion.gradient(problem.model, problem.scheduler, victim.images, victim.noise, victim.timesteps)
    own, observed = vectors(problem, again)
    assert sample_misfits(own, observed).max() < 1e-6
    assert unexplained_energy(own, observed).max() < 1e-6 * observed.square().sum()
    assert best_permutation(cosine_matrix(own, observed), 0.5) is None


def test_the_sample_with_another_image_does_not_fit_and_the_others_do(batch):
    victim, problem = batch
    noise = victim.noise.clone()
    noise[1] = torch.randn(noise[1].shape, generator=torch.Generator().manual_seed(5))
    changed = diffusion.gradient(problem.model, problem.scheduler, victim.images, noise, victim.timesteps)
    own, observed = vectors(problem, changed)
    misfits = sample_misfits(own, observed)
    assert misfits[1] > 0.1
    assert misfits[[0, 2]].max() < 1e-6


@pytest.mark.parametrize("left_out", [0.5, 0.9])  # of which the larger leaves no time projections at all
def test_entries_that_were_not_sent_are_nobody_s_fault(left_out):
    def largest(update):
        threshold = torch.cat([value.abs().flatten() for value in update.values()]).quantile(left_out)
        return {name: value * (value.abs() >= threshold) for name, value in update.items()}

    victim = make_victim(TIMESTEPS, model_config=WIDE, defend=largest, defence=DefenceDisclosure(sparsified=True))
    problem = InversionProblem(victim.observation, "cpu")
    whole = diffusion.gradient(problem.model, problem.scheduler, victim.images, victim.noise, victim.timesteps)
    assert sample_misfits(*sample_vectors(problem, victim.timesteps, whole)).max() < 1e-6


def test_without_time_projections_nobody_is_blamed():
    def unshared(update):
        return {name: value for name, value in update.items() if "time_emb_proj" not in name}

    problem = InversionProblem(make_victim(TIMESTEPS, model_config=WIDE, defend=unshared).observation, "cpu")
    nothing = sample_vectors(problem, torch.tensor(TIMESTEPS), {})
    assert sample_misfits(*nothing).tolist() == [0, 0, 0]
    assert best_permutation(cosine_matrix(*nothing), 0.5) is None


def test_samples_in_each_others_place_are_told_where_they_belong():
    victim = make_victim((300, 310, 700), model_config=WIDE)
    problem = InversionProblem(victim.observation, "cpu")
    turned = [1, 0, 2]
    gradient = diffusion.gradient(
        problem.model, problem.scheduler, victim.images[turned], victim.noise[turned], victim.timesteps
    )
    own, observed = vectors(problem, gradient)
    places = best_permutation(cosine_matrix(own, observed), 0.5)
    assert places is not None
    assert places.tolist() == turned


def test_a_small_advantage_moves_nobody():
    assert best_permutation(torch.tensor([[0.3, 0.5], [0.5, 0.3]]), 0.5) is None
    moved = best_permutation(torch.tensor([[0.1, 0.5, 0.0], [0.0, 0.1, 0.5], [0.5, 0.0, 0.1]]), 0.5)
    assert moved is not None
    assert moved.tolist() == [1, 2, 0]
