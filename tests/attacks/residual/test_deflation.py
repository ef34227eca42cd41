import pytest
import torch

from attacks.inversion.entry_weights import distance_for
from attacks.inversion.gradient_matching import GradientMatching
from attacks.inversion.problem import InversionProblem
from attacks.observation import Defence
from attacks.residual.deflation import can_be_deflated, deflated_run, spoiled
from attacks.residual.local_training import SimulatedTraining
from attacks.residual.sample_diagnostics import sample_misfits
from attacks.residual.unknowns import KnownSpace, PrivateSpace, SpaceRun, spaces
from fl_sim import diffusion
from fl_sim.diffusion import LocalOptimizer
from tests.attacks.conftest import MODEL, make_victim, psnr, true_unknowns
from tests.attacks.finite_differences import to_double

WIDE = MODEL | {"block_out_channels": [32, 32]}
TIMESTEPS = (120, 400, 600)
FREE = torch.tensor([False, True, True])


def searched(victim, kind=PrivateSpace):
    """The space of a batch, a run from its true unknowns, and these."""
    problem = InversionProblem(victim.observation, "cpu")
    space = next(space for space in spaces(problem) if isinstance(space, kind))
    truth = true_unknowns(space, victim) if kind is PrivateSpace else [victim.images / space.image_scale]
    matching = GradientMatching(problem, space.training_loss, distance_for(problem, balance=1.5))
    return space, SpaceRun(space, matching, truth, history=100), truth


def drawn_anew(space, truth):
    """The true unknowns but for the free samples'."""
    fresh = space.start(torch.Generator().manual_seed(3), 0.05, 0.05)
    return [torch.where(FREE.view(-1, 1, 1, 1), new, old) for new, old in zip(fresh, truth, strict=True)]


@pytest.mark.parametrize("kind", [PrivateSpace, KnownSpace])
@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_beside_the_true_others_the_truth_leaves_nothing(kind, prediction_type):
    victim = make_victim(TIMESTEPS, prediction_type=prediction_type, known=kind is KnownSpace, model_config=WIDE)
    _, found, truth = searched(victim, kind)
    assert deflated_run(found, truth, FREE, 1.5, "one-sided").advance(10) < 1e-8


def test_the_free_samples_are_found_and_the_others_stay():
    victim = make_victim(TIMESTEPS, model_config=WIDE)
    space, found, truth = searched(victim)
    run = deflated_run(found, drawn_anew(space, truth), FREE, 1.5, "one-sided")
    run.advance(200)
    images = space.images(run.unknowns)
    assert psnr((images[1:] + 1) / 2, (victim.images[1:] + 1) / 2) > 35
    for moved, true in zip(run.unknowns, truth, strict=True):
        assert torch.equal(moved[0], true[0])


def test_what_is_left_weighs_as_if_there_had_been_nothing_else():
    victim = make_victim(TIMESTEPS, model_config=WIDE)
    _, found, truth = searched(victim)
    alone = deflated_run(found, truth, FREE, 1.5, "one-sided").objective
    nothing = [truth[0], torch.zeros_like(truth[1])]  # without residuals there is no gradient
    assert alone.value(nothing) == pytest.approx(1, rel=1e-4)
    assert not torch.equal(found.matching.observed, alone.observed)


def test_the_derivative_is_the_difference_of_values():
    victim = make_victim(TIMESTEPS, model_config=WIDE)
    space, found, truth = searched(victim)
    to_double(space.problem)
    start = [value.double().requires_grad_() for value in drawn_anew(space, truth)]
    objective = deflated_run(found, start, FREE, 1.5, "double-backward").objective
    _, derivatives = objective(start)
    source = torch.Generator().manual_seed(5)
    for index, derivative in enumerate(derivatives):
        assert not derivative[~FREE].any()
        direction = torch.randn(derivative.shape, generator=source, dtype=torch.float64)
        ahead, behind = (
            objective([(u + s * direction if i == index else u).detach().requires_grad_() for i, u in enumerate(start)])
            for s in (1e-5, -1e-5)
        )
        slope = float(ahead[0] - behind[0]) / 2e-5
        assert float((derivative * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_what_the_others_are_wrong_by_spoils_what_is_left():
    observed = torch.tensor([[10.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    right, free = observed.clone(), torch.tensor([False, True])
    right[:, 1] = torch.tensor([1.0, 0.0])  # the free sample may be anything
    assert spoiled(right, observed, free) == pytest.approx(0, abs=1e-12)
    wrong = right.clone()
    wrong[1, 0] = 10.0  # 45 degrees off: half of the 100 that are taken off, in parts of the 4 that are left
    assert sample_misfits(wrong, observed)[0] == pytest.approx(0.5)
    assert spoiled(wrong, observed, free) == pytest.approx(50 / 4)


def test_only_a_sum_over_samples_can_be_deflated():
    _, found, _ = searched(make_victim(TIMESTEPS, model_config=WIDE))
    assert can_be_deflated(found)
    clipped = make_victim((300, 500), defend=lambda update: update, defence=Defence(clip_norm=1e-6), model_config=WIDE)
    assert not can_be_deflated(searched(clipped)[1])
    victim = make_victim((150, 400), local_steps=2, optimizer=LocalOptimizer(lr=0.1), model_config=WIDE)
    space, found, truth = searched(victim)
    steps = [torch.tensor([0]), torch.tensor([1])]
    distance = distance_for(space.problem, balance=1.5)
    simulated = SimulatedTraining(space.problem, space.step_loss, steps, distance, space.images)
    assert not can_be_deflated(SpaceRun(space, simulated, truth, history=100))
