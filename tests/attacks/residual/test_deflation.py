import pytest
import torch

from attacks.inversion.problem import InversionProblem
from attacks.observation import DefenceDisclosure
from attacks.residual.deflation import can_be_deflated, deflated_run, deflation_error
from attacks.residual.local_training import LocalTraining
from attacks.residual.sample_diagnostics import sample_misfits
from attacks.residual.unknowns import CleanImage, NoisyImageAndResidual, possible_unknowns
from fl_sim import diffusion
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import make_victim, psnr, true_unknowns
from tests.attacks.finite_differences import to_double
from tests.attacks.residual.candidates import WIDE, candidate_at

TIMESTEPS = (120, 400, 600)
FREE = torch.tensor([False, True, True])


def searched(victim, kind=NoisyImageAndResidual, **arguments):
    """The unknowns of a batch, a candidate at the truth, and the truth."""
    problem = InversionProblem(victim.observation, "cpu")
    unknowns = next(unknowns for unknowns in possible_unknowns(problem) if isinstance(unknowns, kind))
    noisy = kind is NoisyImageAndResidual
    truth = true_unknowns(unknowns, victim) if noisy else [victim.images / unknowns.image_scale]
    return unknowns, candidate_at(unknowns, truth, history=100, **arguments), truth


def drawn_anew(unknowns, truth):
    """The true unknowns but for the free samples'."""
    fresh = unknowns.draw(torch.Generator().manual_seed(3), 0.05, 0.05)
    return [torch.where(FREE.view(-1, 1, 1, 1), new, old) for new, old in zip(fresh, truth, strict=True)]


@pytest.mark.parametrize("kind", [NoisyImageAndResidual, CleanImage])
@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_beside_the_true_others_the_truth_leaves_nothing(kind, prediction_type):
    victim = make_victim(TIMESTEPS, prediction_type=prediction_type, known=kind is CleanImage, model_config=WIDE)
    _, found, truth = searched(victim, kind)
    assert deflated_run(found, truth, FREE).advance(10) < 1e-8


def test_the_free_samples_are_found_and_the_others_stay():
    victim = make_victim(TIMESTEPS, model_config=WIDE)
    unknowns, found, truth = searched(victim)
    run = deflated_run(found, drawn_anew(unknowns, truth), FREE)
    run.advance(120)
    images = unknowns.images(run.point)
    assert psnr((images[1:] + 1) / 2, (victim.images[1:] + 1) / 2) > 35
    for moved, true in zip(run.point, truth, strict=True):
        assert torch.equal(moved[0], true[0])


def test_what_is_left_weighs_as_if_there_had_been_nothing_else():
    victim = make_victim(TIMESTEPS, model_config=WIDE)
    _, found, truth = searched(victim)
    alone = deflated_run(found, truth, FREE).objective
    nothing = [truth[0], torch.zeros_like(truth[1])]  # without residuals there is no gradient
    assert alone.value(nothing) == pytest.approx(1, rel=1e-4)
    assert not torch.equal(found.matching.observed, alone.observed)


def test_the_derivative_is_the_difference_of_values():
    victim = make_victim(TIMESTEPS, model_config=WIDE)
    unknowns, found, truth = searched(victim, derivative="double-backward")
    to_double(unknowns.problem)
    start = [value.double().requires_grad_() for value in drawn_anew(unknowns, truth)]
    objective = deflated_run(found, start, FREE).objective
    _, derivatives = objective(start)
    generator = torch.Generator().manual_seed(5)
    for index, derivative in enumerate(derivatives):
        assert not derivative[~FREE].any()
        direction = torch.randn(derivative.shape, generator=generator, dtype=torch.float64)
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
    assert deflation_error(right, observed, free) == pytest.approx(0, abs=1e-12)
    wrong = right.clone()
    wrong[1, 0] = 10.0  # 45 degrees off: half of the 100 that are taken off, in parts of the 4 that are left
    assert sample_misfits(wrong, observed)[0] == pytest.approx(0.5)
    assert deflation_error(wrong, observed, free) == pytest.approx(50 / 4)


def test_only_a_sum_over_samples_can_be_deflated():
    _, found, _ = searched(make_victim(TIMESTEPS, model_config=WIDE))
    assert can_be_deflated(found)
    clipped = make_victim(
        (300, 500), defend=lambda update: update, defence=DefenceDisclosure(clip_norm=1e-6), model_config=WIDE
    )
    assert not can_be_deflated(searched(clipped)[1])
    victim = make_victim((150, 400), local_steps=2, optimizer=LocalOptimizer(lr=0.1), model_config=WIDE)
    _, found, _ = searched(victim)
    assert not can_be_deflated(LocalTraining().run(found, found.minimiser.problem.budget.of(20)))
