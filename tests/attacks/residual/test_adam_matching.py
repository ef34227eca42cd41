import pytest
import torch
from torch import Tensor

from attacks.inversion.gradient_matching import squared_error
from attacks.inversion.problem import InversionProblem
from attacks.residual.adam_matching import AdamMatching
from fl_sim import diffusion
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import Victim, make_victim
from tests.attacks.finite_differences import assert_derivative, double_problem

OPTIMIZER = LocalOptimizer(name="adam", lr=1e-3, weight_decay=1e-6, proximal_mu=1e-3)
STEPS = [torch.tensor([0]), torch.tensor([1])]


@pytest.fixture(scope="module")
def trained() -> Victim:
    return make_victim((10, 300), local_steps=2, optimizer=OPTIMIZER)


def matching_of(problem: InversionProblem, victim: Victim) -> AdamMatching:
    """With images and noise as unknowns."""

    def step_loss(samples: Tensor, unknowns: list[Tensor]) -> Tensor:
        images, noise = (values[samples] for values in unknowns)
        return diffusion.loss(problem.model, problem.scheduler, images, noise, victim.timesteps[samples])

    return AdamMatching(problem, step_loss, STEPS, squared_error, lambda unknowns: unknowns[0])


def truth(victim: Victim) -> list[Tensor]:
    return [victim.images.clone().requires_grad_(), victim.noise.clone().requires_grad_()]


def test_the_true_training_has_the_observed_delta(trained):
    problem = InversionProblem(trained.observation, "cpu")
    matching = matching_of(problem, trained)
    assert matching.value(truth(trained)) < 1e-4
    swapped = [values.detach().flip(0).requires_grad_() for values in truth(trained)]
    assert matching.value(swapped) > 0.1
    assert problem.budget.spent == 2
    state = problem.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in trained.observation.weights.items())


def test_what_eps_takes_off_the_first_step_shows_the_scale(trained):
    matching = matching_of(InversionProblem(trained.observation, "cpu"), trained)
    gradients = [gradient.detach() for gradient in matching.step_gradients(truth(trained))]
    exact = matching.shortened(gradients[0])
    misfits = {scale: (exact.at_scale(gradients, scale) - exact.observed).abs().median() for scale in (0.5, 1.0, 2.0)}
    assert min(misfits, key=lambda scale: misfits[scale]) == 1.0
    assert torch.equal(exact.mean_step(*gradients, exact.first_step), exact.at_scale(gradients, 1.0))
    assert not torch.equal(exact.visited[1], matching.visited[1])


def test_the_derivative_goes_through_both_steps(trained):
    problem = double_problem(trained.observation)
    shape = tuple(trained.images.shape)
    assert_derivative(matching_of(problem, trained), [shape, shape], relative=3e-2, step=1e-4)
