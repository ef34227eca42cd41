"""The inputs of a network's convolutions as matrices, one row for every position of every sample (im2col)."""

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
    kernel positions, of which the latter run fastest. H is large, and not kept. Convolutions with groups are left out.

    Args:
        model: the network.
        x_t: noisy images [N,C,H,W].
        timesteps: int64 [N].
        names: names of weights.
        function: of a weight's name and H.
        labels: int64 [N], where the network takes them.
    """
    found: dict[str, Result] = {}

    def before(name: str, layer: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        assert not isinstance(layer.padding, str)  # diffusers gives numbers
        columns = unfold(inputs[0], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        found[name] = function(name, columns.transpose(1, 2).flatten(0, 1))

    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    wanted = {name: layer for name, layer in layers.items() if name in names and layer.groups == 1}
    handles = [layer.register_forward_pre_hook(partial(before, name)) for name, layer in wanted.items()]
    try:
        diffusion.predict(model, x_t, timesteps, labels)
    finally:
        for handle in handles:
            handle.remove()
    return found
