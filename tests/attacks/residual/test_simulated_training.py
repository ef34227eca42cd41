import pytest
import torch
from torch import Tensor

from attacks.inversion.gradient_matching import squared_error
from attacks.inversion.problem import InversionProblem
from attacks.residual.simulated_training import SimulatedTraining
from fl_sim import diffusion
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import Victim, make_victim
from tests.attacks.finite_differences import assert_derivative, double_problem

OPTIMIZER = LocalOptimizer(lr=0.3, momentum=0.9, weight_decay=0.01, proximal_mu=0.5)
STEPS = [torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4, 5])]


@pytest.fixture(scope="module", params=[None, 0.2], ids=["last", "average"])
def trained(request: pytest.FixtureRequest) -> Victim:
    timesteps = (10, 300, 250, 70, 500, 40)
    return make_victim(timesteps, local_steps=3, optimizer=OPTIMIZER, ema_decay=request.param)


def simulation(problem: InversionProblem, victim: Victim) -> SimulatedTraining:
    """With images and noise as unknowns."""

    def step_loss(samples: Tensor, unknowns: list[Tensor]) -> Tensor:
        images, noise = (values[samples] for values in unknowns)
        return diffusion.loss(problem.model, problem.scheduler, images, noise, victim.timesteps[samples])

    return SimulatedTraining(problem, step_loss, STEPS, squared_error, lambda unknowns: unknowns[0])


def test_the_true_training_has_the_observed_delta(trained):
    problem = InversionProblem(trained.observation, "cpu")
    unknowns = [trained.images.clone().requires_grad_(), trained.noise.clone().requires_grad_()]
    assert simulation(problem, trained).value(unknowns) < 1e-8
    swapped = [values.detach().flip(0).requires_grad_() for values in unknowns]
    assert simulation(problem, trained).value(swapped) > 1e-2
    assert problem.budget.spent == 2


def test_the_derivative_goes_back_through_all_steps(trained):
    matching = simulation(double_problem(trained.observation), trained)
    shape = tuple(trained.images.shape)
    assert_derivative(matching, [shape, shape], relative=2e-2, step=1e-4)


def test_weights_are_left_as_they_were(trained):
    problem = InversionProblem(trained.observation, "cpu")
    unknowns = [trained.images.clone().requires_grad_(), trained.noise.clone().requires_grad_()]
    matching = simulation(problem, trained)
    matching(unknowns)
    torch.testing.assert_close(matching.images(unknowns), trained.images)
    state = problem.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in trained.observation.weights.items())
