import pytest
import torch
from torch import Tensor

from attacks.inversion.gradient_matching import squared_error
from attacks.inversion.problem import InversionProblem
from attacks.residual.simulated_adam import Moments, SimulatedAdam
from fl_sim import diffusion
from fl_sim.diffusion import LocalOptimizer
from tests.attacks.conftest import Victim, make_victim
from tests.attacks.finite_differences import assert_derivative, double_problem

OPTIMIZER = LocalOptimizer(name="adam", lr=1e-2, weight_decay=1e-3, proximal_mu=0.5, eps=1e-5)
STEPS = [torch.tensor([0]), torch.tensor([1]), torch.tensor([2])]


@pytest.fixture(scope="module")
def trained() -> Victim:
    return make_victim((10, 300, 250), local_steps=3, optimizer=OPTIMIZER)


def simulation(problem: InversionProblem, victim: Victim) -> SimulatedAdam:
    """With images and noise as unknowns."""

    def step_loss(samples: Tensor, unknowns: list[Tensor]) -> Tensor:
        images, noise = (values[samples] for values in unknowns)
        return diffusion.loss(problem.model, problem.scheduler, images, noise, victim.timesteps[samples])

    return SimulatedAdam(problem, step_loss, STEPS, squared_error, lambda unknowns: unknowns[0])


def test_the_true_training_has_the_observed_delta(trained):
    problem = InversionProblem(trained.observation, "cpu")
    unknowns = [trained.images.clone().requires_grad_(), trained.noise.clone().requires_grad_()]
    assert simulation(problem, trained).value(unknowns) < 1e-6
    swapped = [values.detach().flip(0).requires_grad_() for values in unknowns]
    assert simulation(problem, trained).value(swapped) > 1e-1
    assert problem.budget.spent == 2


def test_the_derivative_goes_back_through_all_steps(trained):
    matching = simulation(double_problem(trained.observation), trained)
    shape = tuple(trained.images.shape)
    assert_derivative(matching, [shape, shape], relative=3e-2, step=1e-4)
