"""The error of a gradient as the error of the derivatives with respect to layers' outputs."""

import pytest
import torch

from attacks.residual.output_metric import output_metric


@pytest.mark.parametrize(("positions", "width"), [(5, 12), (12, 5)])
def test_it_is_the_squared_error_of_the_regularised_derivatives(positions, width):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(positions, width, generator=generator, dtype=torch.float64)
    error = torch.randn(3, width, generator=generator, dtype=torch.float64)
    gram = inputs @ inputs.T
    shift = 0.1 * gram.diagonal().sum() / min(positions, width)
    derivatives = error @ inputs.T @ torch.linalg.inv(gram + shift * torch.eye(positions, dtype=torch.float64))
    found = (error * output_metric(inputs, 0.1)(error)).sum()
    torch.testing.assert_close(found, derivatives.square().sum())


def test_inputs_that_are_zero_say_nothing():
    assert not output_metric(torch.zeros(4, 9), 0.1)(torch.ones(2, 9)).any()
