"""The inputs of a network's convolutions as matrices, one row for every position of every sample (im2col)."""

from collections.abc import Callable, Container
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from fl_sim import diffusion

Result = TypeVar("Result")


def map_convolution_inputs(
    model: nn.Module, x_t: Tensor, timesteps: Tensor, names: Container[str], function: Callable[[str, Tensor], Result]
) -> dict[str, Result]:
    """``function(name, H)`` of every convolution in ``names``, by the name of its weight, in their order.

    H [P,K] holds the patches of the layer's input; the weight's gradient is D^T H, [O,K]. K counts input channels times
    kernel positions, of which the latter run fastest. H is large, and not kept. Convolutions with groups are left out.
    The forward pass ends at the last of these convolutions.

    Args:
        model: the network.
        x_t: noisy images [N,C,H,W].
        timesteps: int64 [N].
        names: names of weights.
        function: of a weight's name and H.
    """
    return _visit(model, x_t, timesteps, names, lambda name, layer, inputs: function(name, _patches(layer, inputs)))


def seen_pixels(model: nn.Module, x_t: Tensor, timesteps: Tensor, names: Container[str]) -> dict[str, Tensor]:
    """Which pixels of its input a convolution sees, int64 [p,k] for p positions in a sample and k kernel positions.

    Pixels count from 1, row by row; 0 is padding. Arguments and keys as for ``map_convolution_inputs``.
    """

    def pixels(_: str, layer: nn.Conv2d, inputs: Tensor) -> Tensor:
        height, width = inputs.shape[-2:]
        numbers = torch.arange(1, height * width + 1, dtype=torch.float64, device=inputs.device)
        return _patches(layer, numbers.view(1, 1, height, width)).long()

    with torch.no_grad():
        return _visit(model, x_t, timesteps, names, pixels)


class _AllSeenError(Exception):
    """Ends a forward pass of which the rest does not matter."""


def _visit(
    model: nn.Module,
    x_t: Tensor,
    timesteps: Tensor,
    names: Container[str],
    function: Callable[[str, nn.Conv2d, Tensor], Result],
) -> dict[str, Result]:
    found: dict[str, Result] = {}

    def before(name: str, layer: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        found[name] = function(name, layer, inputs[0])
        if len(found) == len(wanted):
            raise _AllSeenError

    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    wanted = {name: layer for name, layer in layers.items() if name in names and layer.groups == 1}
    handles = [layer.register_forward_pre_hook(partial(before, name)) for name, layer in wanted.items()]
    try:
        diffusion.predict(model, x_t, timesteps)
    except _AllSeenError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def _patches(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """H [P,K] of a layer's input [N,C,H,W]."""
    assert not isinstance(layer.padding, str)  # diffusers gives numbers
    columns = unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)
