from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.residual.conv_inputs import map_convolution_inputs

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """A convolution, used ``times``."""

    def __init__(self, times: int = 1, **arguments: Any) -> None:
        super().__init__()
        self.conv, self.times = nn.Conv2d(3, 3, **arguments), times

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.conv(x)
        return x


def inputs(network: Network) -> Tensor | None:
    timesteps = torch.zeros(2, dtype=torch.int64)
    return map_convolution_inputs(network, X, timesteps, ["conv.weight"], lambda _, h: h).get("conv.weight")


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": (1, 0), "stride": 2},
        {"kernel_size": 3, "padding": "valid", "dilation": 2},
        {"kernel_size": (3, 1), "padding": "same", "dilation": 2},
        {"kernel_size": 1, "padding_mode": "reflect"},
    ],
)
def test_the_weights_gradient_is_that_of_the_outputs_times_the_inputs(arguments: dict[str, Any]):
    network = Network(**arguments)
    output = network(X, X)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    [gradient] = torch.autograd.grad((output * direction).sum(), [network.conv.weight])
    h = inputs(network)
    assert h is not None
    by_position = direction.permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.allclose((by_position.T @ h).view_as(gradient), gradient, atol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 2, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 1, "groups": 3},
        {"kernel_size": 3, "padding": 1, "times": 2},
    ],
)
def test_other_convolutions_are_left_out(arguments: dict[str, Any]):
    assert inputs(Network(**arguments)) is None
