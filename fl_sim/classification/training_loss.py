"""The training loss of a classifier and its gradient."""

from torch import Tensor, nn

from fl_sim.classification.network import predict
from fl_sim.network import weight_gradient


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy; a scalar.

    ``images`` are [B,C,H,W] in [-1, 1]. ``labels`` are classes, int64 [B], or the probabilities of every class, float
    [B,K]: a soft label.
    """
    return nn.functional.cross_entropy(predict(model, images), labels)


def gradient_and_loss(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], float]:
    """dL/dw of ``loss`` by trainable parameter's name, and the loss itself; the model's ``.grad`` is untouched."""
    value = loss(model, images, labels)
    return weight_gradient(model, value), value.item()
