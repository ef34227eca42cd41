"""The network's prediction for noisy images."""

from torch import Tensor, nn


def predict(model: nn.Module, x_t: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
    """The network's output [B,C,H,W] for noisy images ``x_t`` [B,C,H,W] at ``timesteps`` [B].

    ``labels`` int64 [B] are the classes of the images, for a network that takes them (``num_class_embeds``); they come
    third. A network returns its output as it is, or as the attribute ``sample`` of an object, as those of diffusers do.
    """
    output = model(x_t, timesteps) if labels is None else model(x_t, timesteps, labels)
    return output if isinstance(output, Tensor) else output.sample
