"""The inputs of a network's convolutions as matrices, one row for every position of every sample (im2col)."""

from collections import Counter
from collections.abc import Callable, Container
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from fl_sim import diffusion

Result = TypeVar("Result")


def map_convolution_inputs(
    model: nn.Module,
    x_t: Tensor,
    timesteps: Tensor,
    names: Container[str],
    function: Callable[[str, Tensor], Result],
    labels: Tensor | None = None,
    *,
    stop: bool = False,
) -> dict[str, Result]:
    """``function(name, H)`` of every convolution in ``names``, by the name of its weight, in their order.

    H [P,K] holds the patches of the layer's input; the weight's gradient is D^T H, [O,K]. K counts input channels times
    kernel positions, of which the latter run fastest. H is large, and not kept. Convolutions with groups are left out,
    and those that pad with anything but zeros on both sides, or that the network uses more than once.

    Args:
        model: the network.
        x_t: [N,C,H,W].
        timesteps: int64 [N].
        names: names of weights.
        function: of a weight's name and H.
        labels: int64 [N], where the network takes them.
        stop: end the forward pass at the last of these convolutions, each of which the network uses once.
    """

    def of_patches(name: str, layer: nn.Conv2d, padding: tuple[int, ...], inputs: Tensor) -> Result:
        return function(name, _patches(layer, padding, inputs))

    return _visit(model, x_t, timesteps, names, of_patches, labels, stop)


def seen_pixels(
    model: nn.Module, x_t: Tensor, timesteps: Tensor, names: Container[str], labels: Tensor | None = None
) -> dict[str, Tensor]:
    """Which pixels of its input a convolution sees, int64 [p,k] for p positions in a sample and k kernel positions.

    Pixels count from 1, row by row; 0 is padding. Arguments and keys as for ``map_convolution_inputs``.
    """

    def pixels(_: str, layer: nn.Conv2d, padding: tuple[int, ...], inputs: Tensor) -> Tensor:
        height, width = inputs.shape[-2:]
        numbers = torch.arange(1, height * width + 1, dtype=torch.float64, device=inputs.device)
        return _patches(layer, padding, numbers.view(1, 1, height, width)).long()

    with torch.no_grad():
        return _visit(model, x_t, timesteps, names, pixels, labels, stop=False)


class _AllSeenError(Exception):
    """Ends a forward pass of which the rest does not matter."""


def _visit(
    model: nn.Module,
    x_t: Tensor,
    timesteps: Tensor,
    names: Container[str],
    function: Callable[[str, nn.Conv2d, tuple[int, ...], Tensor], Result],
    labels: Tensor | None,
    stop: bool,
) -> dict[str, Result]:
    """``function(name, layer, padding, input)`` of the convolutions, in the order in which they run."""
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    wanted = {name: layer for name, layer in layers.items() if name in names and layer.groups == 1}
    paddings = {name: padding for name, layer in wanted.items() if (padding := _padding(layer)) is not None}
    found: dict[str, Result] = {}
    used: Counter[str] = Counter()

    def before(name: str, layer: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        found[name] = function(name, layer, paddings[name], inputs[0])
        used[name] += 1
        if stop and len(found) == len(paddings):
            raise _AllSeenError

    handles = [wanted[name].register_forward_pre_hook(partial(before, name)) for name in paddings]
    try:
        diffusion.predict(model, x_t, timesteps, labels)
    except _AllSeenError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {name: result for name, result in found.items() if used[name] == 1}


def _padding(layer: nn.Conv2d) -> tuple[int, ...] | None:
    """Zeros on either side along both axes; None if that is not how the layer pads."""
    if not isinstance(layer.padding, str):
        return layer.padding if layer.padding_mode == "zeros" or not any(layer.padding) else None
    total = [dilation * (kernel - 1) for dilation, kernel in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "valid" or not any(total):
        return 0, 0
    even = layer.padding_mode == "zeros" and not any(side % 2 for side in total)
    return (total[0] // 2, total[1] // 2) if even else None


def _patches(layer: nn.Conv2d, padding: tuple[int, ...], inputs: Tensor) -> Tensor:
    """H [P,K] of a layer's input [N,C,H,W]."""
    columns = unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)
