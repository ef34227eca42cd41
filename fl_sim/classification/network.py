"""Logits of a classifier, and the features that its last layer gets."""

from torch import Tensor, nn

from fl_sim.network import ConfigError


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [B,K] of images [B,C,H,W] in [-1, 1]."""
    logits: Tensor = model(images)
    return logits


def last_layer(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the linear layer that comes last, the one that makes the logits.

    Raises:
        ConfigError: if the network has no linear layer.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigError("the classifier has no linear layer; allowed: a network whose last layer is a linear one")
    return layers[-1]


def features(model: nn.Module, images: Tensor) -> Tensor:
    """What the last linear layer takes in, [B,F], of images [B,C,H,W] in [-1, 1]; differentiable."""
    return logits_and_features(model, images)[1]


def logits_and_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """``predict`` and ``features`` of the same images, by one pass through the network."""
    taken: list[Tensor] = []
    handle = last_layer(model)[1].register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    try:
        return predict(model, images), taken[-1]
    finally:
        handle.remove()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest logit is the label's; logits [B,K], labels int64 [B].

    >>> import torch
    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    0.5
    """
    return (logits.argmax(dim=1) == labels).float().mean().item()
