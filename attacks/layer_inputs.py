"""The inputs of a network's convolutions as matrices, one row for every position of every sample (im2col)."""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import unfold

from fl_sim import diffusion


def convolution_inputs(model: nn.Module, x_t: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
    """By name of the weight, in the order of computation: H [P,K], with which its gradient is D^T H, [O,K].

    K counts input channels times kernel positions, the latter running fastest. Convolutions with groups are left out.
    """
    found: dict[str, Tensor] = {}

    def put_down(name: str, layer: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        assert not isinstance(layer.padding, str)  # diffusers gives numbers
        columns = unfold(inputs[0], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        found[f"{name}.weight"] = columns.transpose(1, 2).flatten(0, 1)

    convolutions = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    handles = [layer.register_forward_pre_hook(partial(put_down, name)) for name, layer in convolutions]
    try:
        diffusion.predict(model, x_t, timesteps)
    finally:
        for handle in handles:
            handle.remove()
    return found
