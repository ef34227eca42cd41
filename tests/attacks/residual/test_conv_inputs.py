"""The inputs of convolutions, as matrices."""

import torch

from attacks.inversion.problem import InversionProblem
from attacks.residual.conv_inputs import map_convolution_inputs, seen_pixels
from tests.attacks.conftest import SHAPE, make_victim
from tests.attacks.residual.test_subspace_init import DEEP, noisy_images


def test_inputs_are_those_of_the_convolutions_and_no_hook_stays():
    victim = make_victim((300, 20), model_config=DEEP)
    model, outputs = InversionProblem(victim.observation, "cpu").model, {}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Conv2d)}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    names = {f"{name}.weight" for name in layers}
    inputs = map_convolution_inputs(model, noisy_images(victim), victim.timesteps, names, lambda _, h: h)
    assert list(inputs) == [f"{name}.weight" for name in [*outputs, "conv_out"]]  # where the forward pass ended
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
    assert map_convolution_inputs(model, noisy_images(victim), victim.timesteps, names, lambda _, h: h).keys() == names
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
