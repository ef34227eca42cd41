import pytest
import torch
from torch import nn

from fl_sim import diffusion, network
from fl_sim.diffusion import PREDICTION_TYPES
from tests.fl_sim.diffusion.toy import draw, scheduler, tiny_config


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return network.build_model(tiny_config())


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_and_gradient_agree_with_a_plain_backward(model: nn.Module, prediction_type: str) -> None:
    ddpm, (x0, noise, timesteps) = scheduler(prediction_type), draw()
    x_t = ddpm.add_noise(x0, noise, timesteps)
    target = {"epsilon": noise, "sample": x0, "v_prediction": ddpm.get_velocity(x0, noise, timesteps)}[prediction_type]
    expected = (model(x_t, timesteps).sample - target).square().mean()
    torch.testing.assert_close(diffusion.loss(model, ddpm, x0, noise, timesteps), expected)
    gradient = diffusion.gradient(model, ddpm, x0, noise, timesteps)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.zero_grad()
    expected.backward()
    torch.testing.assert_close(gradient, {name: p.grad for name, p in model.named_parameters()})
    model.zero_grad()


def test_frozen_parameters_have_no_gradient() -> None:
    model = network.build_model(tiny_config())
    model.conv_in.weight.requires_grad_(False)
    gradient = diffusion.gradient(model, scheduler(), *draw())
    assert "conv_in.weight" not in gradient
    assert "conv_in.bias" in gradient
