"""The inputs of a network's convolutions as matrices, one row for every position of every sample (im2col)."""

from collections import Counter
from collections.abc import Callable, Container
from functools import partial
from typing import TypeVar

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
) -> dict[str, Result]:
    """``function(name, H)`` of every convolution in ``names``, by the name of its weight.

    H [P,K] holds the patches of the layer's input; the weight's gradient is D^T H, [O,K]. K counts input channels times
    kernel positions, of which the latter run fastest. H is large, and not kept. Convolutions with groups are left out,
    and those that pad with anything but zeros on both sides, or that the network uses more than once.

    Args:
        model: the network.
        x_t: noisy images [N,C,H,W].
        timesteps: int64 [N].
        names: names of weights.
        function: of a weight's name and H.
        labels: int64 [N], where the network takes them.
    """
    found: dict[str, Result] = {}
    used: Counter[str] = Counter()

    def before(name: str, padding: tuple[int, ...], layer: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        columns = unfold(inputs[0], layer.kernel_size, layer.dilation, padding, layer.stride)
        found[name] = function(name, columns.transpose(1, 2).flatten(0, 1))
        used[name] += 1

    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    wanted = {name: layer for name, layer in layers.items() if name in names and layer.groups == 1}
    paddings = {name: _padding(layer) for name, layer in wanted.items()}
    handles = [
        wanted[name].register_forward_pre_hook(partial(before, name, padding))
        for name, padding in paddings.items()
        if padding is not None
    ]
    try:
        diffusion.predict(model, x_t, timesteps, labels)
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
