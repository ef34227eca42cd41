"""r at a known x_t by conjugate gradients."""

import pytest
import torch

from attacks.inversion.problem import InversionProblem
from attacks.residual.linear_residual import LinearResidual, of_entries, of_outputs
from attacks.residual.unknowns import NoisyImageAndResidual
from fl_sim.network import unet_config
from tests.attacks.conftest import MODEL, Victim, make_victim, true_unknowns

ATTENTION = unet_config(8, block_out_channels=(16, 16), norm_num_groups=4, attention=True)
EVERY_LAYER = 1e9
"""Equations per unknown that no network has."""


def search(victim: Victim, min_equations: float = 5.0) -> tuple[LinearResidual, torch.Tensor, list[str]]:
    """The search at the true x_t, the true r, and the names of the weights that count."""
    problem = InversionProblem(victim.observation, "cpu")
    unknowns = NoisyImageAndResidual(problem, victim.timesteps)
    truth = true_unknowns(unknowns, victim)
    x_t = unknowns.noisy_images(truth).detach()
    weighing = of_outputs(problem, unknowns, x_t, min_equations, 1e-3)
    return LinearResidual(problem, unknowns, x_t, torch.zeros_like(x_t), weighing), truth[1].detach(), list(weighing)


def error(run: LinearResidual, truth: torch.Tensor) -> float:
    return float((run.point[0] - truth).norm() / truth.norm())


@pytest.mark.parametrize(
    ("model", "timesteps", "min_equations"),
    [(MODEL, (400,), 5.0), (MODEL, (60, 500), 5.0), (ATTENTION, (400,), EVERY_LAYER)],
    ids=["one image", "two images", "all layers, attention among them"],
)
def test_it_finds_the_residual(model, timesteps, min_equations):
    run, truth, _ = search(make_victim(timesteps, model_config=model), min_equations)
    errors = []
    for _ in range(4):
        run.advance(20)
        errors.append(error(run, truth))
    assert errors[-1] < 5e-3
    assert run.problem.budget.spent == 80


def test_a_weighted_minimum_client_is_searched_in_its_units():
    """min-SNR weighs the samples of a batch differently."""
    run, truth, _ = search(make_victim((20, 600), min_snr_gamma=5.0))
    for _ in range(4):
        run.advance(20)
    assert error(run, truth) < 5e-3


def test_the_loss_it_tells_is_the_distance_at_its_point():
    run, _, _ = search(make_victim())
    told = run.advance(20)
    there, _ = run._distance(run.point[0])
    assert told == float(there)
    assert told < 0.1
    at_zero, _ = run._distance(torch.zeros_like(run.point[0]))
    assert float(at_zero) == pytest.approx(1.0, rel=1e-5)


def test_distance_slope_and_energy_are_those_of_one_quadratic():
    """D(r + d) = D(r) - 2 <left, d> + <A d, W A d>."""
    run, truth, _ = search(make_victim())
    generator = torch.Generator().manual_seed(3)
    here, step = (truth.std() * torch.randn(truth.shape, generator=generator) for _ in range(2))
    value, left = run._distance(here)
    energy, curved = run._energy(step)
    there, _ = run._distance(here + step)
    torch.testing.assert_close(there, value - 2 * (left * step).sum() + energy, rtol=1e-4, atol=0)
    torch.testing.assert_close((curved * step).sum(), energy, rtol=1e-4, atol=0)


def test_the_last_layers_with_equations_enough_count():
    every = search(make_victim(), EVERY_LAYER)[2]
    few = search(make_victim(), 3.0)[2]
    assert set(few) < set(every)
    assert "conv_out.weight" in few
    assert not any(name.startswith(("conv_in", "down_blocks", "mid_block")) for name in few)


def test_a_gradient_with_noise_is_weighed_entry_by_entry():
    victim = make_victim()
    problem = InversionProblem(victim.observation, "cpu")
    unknowns = NoisyImageAndResidual(problem, victim.timesteps)
    truth = true_unknowns(unknowns, victim)
    weighing = of_entries(problem, 0.0)
    assert list(weighing) == list(problem.gradient)
    x_t = unknowns.noisy_images(truth).detach()
    run = LinearResidual(problem, unknowns, x_t, torch.zeros_like(x_t), weighing)
    losses = [run.advance(20) for _ in range(3)]
    assert losses[-1] < 0.1 * losses[0] < 0.1
    assert error(run, truth[1].detach()) < 0.05
