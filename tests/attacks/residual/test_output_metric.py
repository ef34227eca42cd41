"""The error of a gradient as the error of the derivatives with respect to layers' outputs."""

import pytest
import torch

from attacks.inversion.gradient_matching import flatten
from attacks.inversion.problem import InversionProblem
from attacks.residual.output_metric import _output_metric, output_distance
from tests.attacks.conftest import make_victim
from tests.attacks.residual.test_subspace_init import DEEP, noisy_images


@pytest.mark.parametrize(("positions", "width"), [(5, 12), (12, 5)])
def test_it_is_the_squared_error_of_the_regularised_derivatives(positions, width):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(positions, width, generator=generator, dtype=torch.float64)
    error = torch.randn(3, width, generator=generator, dtype=torch.float64)
    gram = inputs @ inputs.T
    scale = 0.1 * gram.diagonal().sum() / min(positions, width)
    derivatives = error @ inputs.T @ torch.linalg.inv(gram + scale * torch.eye(positions, dtype=torch.float64))
    found = (error * _output_metric(inputs, 0.1)(error)).sum()
    torch.testing.assert_close(found, scale * derivatives.square().sum())


def test_inputs_that_are_zero_say_nothing():
    assert not _output_metric(torch.zeros(4, 9), 0.1)(torch.ones(2, 9)).any()


def test_the_distance_is_one_at_zero_and_its_derivative_is_right():
    victim = make_victim((300,), model_config=DEEP)
    problem = InversionProblem(victim.observation, "cpu")
    distance = output_distance(problem, noisy_images(victim), victim.timesteps, 1.5, 0.01)
    observed = flatten(list(problem.gradient.values()))
    value, derivative = distance(torch.zeros_like(observed), observed)
    torch.testing.assert_close(value, torch.tensor(1.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(derivative @ -observed, 2 * value)
    step = torch.randn(observed.shape, generator=torch.Generator().manual_seed(0)) * observed.abs()
    there, _ = distance(1e-2 * step, observed)
    back, _ = distance(-1e-2 * step, observed)
    torch.testing.assert_close((there - back) / 2e-2, derivative @ step, rtol=1e-2, atol=1e-4)
