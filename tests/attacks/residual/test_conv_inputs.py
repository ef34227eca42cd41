"""The inputs of convolutions, as matrices."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.inversion.problem import InversionProblem
from attacks.residual.conv_inputs import map_convolution_inputs, seen_pixels
from tests.attacks.conftest import SHAPE, make_victim
from tests.attacks.residual.test_subspace_init import DEEP, noisy_images

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


def test_inputs_are_those_of_the_convolutions_and_no_hook_stays():
    victim = make_victim((300, 20), model_config=DEEP)
    model, outputs = InversionProblem(victim.observation, "cpu").model, {}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Conv2d)}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    names = {f"{name}.weight" for name in layers}
    inputs = map_convolution_inputs(model, noisy_images(victim), victim.timesteps, names, lambda _, h: h)
    assert list(inputs) == [f"{name}.weight" for name in outputs]
    assert not any(layer._forward_pre_hooks for layer in layers.values())
    for name, output in outputs.items():
        layer = layers[name]
        computed = inputs[f"{name}.weight"] @ layer.weight.flatten(1).T + layer.bias
        torch.testing.assert_close(computed, output.permute(0, 2, 3, 1).flatten(0, 2), rtol=1e-4, atol=1e-4)


def test_the_forward_pass_ends_at_the_last_layer_that_is_asked_for():
    victim = make_victim((300,), model_config=DEEP)
    model, ran = InversionProblem(victim.observation, "cpu").model, []
    model.mid_block.register_forward_hook(lambda *_: ran.append("mid_block"))
    names = {"down_blocks.2.resnets.0.conv1.weight"}
    found = map_convolution_inputs(model, noisy_images(victim), victim.timesteps, names, lambda _, h: h, stop=True)
    assert found.keys() == names
    assert not ran


def test_positions_name_the_pixels_that_they_see():
    """Of 8x8 pixels, a kernel of 3x3 with padding 1 sees four at the corner; a stride skips positions."""
    victim = make_victim((300, 20), model_config=DEEP)
    model = InversionProblem(victim.observation, "cpu").model
    names = {"conv_in.weight", "down_blocks.0.downsamplers.0.conv.weight"}
    same, strided = seen_pixels(model, torch.zeros(2, *SHAPE), victim.timesteps, names).values()
    assert same.shape == (64, 9)
    assert same[0].tolist() == [0, 0, 0, 0, 1, 2, 0, 9, 10]
    assert strided.shape == (16, 9)
    assert torch.equal(strided[1], same[2])
