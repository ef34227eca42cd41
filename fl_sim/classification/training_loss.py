"""The training loss of a classifier and its gradient."""

import torch
from torch import Tensor, nn

from fl_sim.classification.network import predict
from fl_sim.network import trainable_parameters


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy; a scalar.

    ``images`` are [B,C,H,W] in [-1, 1]. ``labels`` are classes, int64 [B], or the probabilities of every class, float
    [B,K]: a soft label.
    """
    return nn.functional.cross_entropy(predict(model, images), labels)


def gradient_and_loss(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], float]:
    """dL/dw of ``loss`` by trainable parameter's name, and the loss itself; the model's ``.grad`` is untouched."""
    parameters = trainable_parameters(model)
    value = loss(model, images, labels)
    gradients = torch.autograd.grad(value, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True)), value.item()
