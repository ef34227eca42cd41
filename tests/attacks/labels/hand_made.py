"""Last layers whose gradient is computed here, from features and labels that the test chooses."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from attacks.labels.last_layer import LastLayer


def make_layer(weights: Tensor, features: Tensor, labels: list[int], noise: float = 0.0, **facts: bool) -> LastLayer:
    """The layer with ``weights`` [K,F+1] that has seen ``features`` [N,F] of these labels.

    With ``noise`` every entry of the gradient has Gaussian noise of that deviation, which the layer tells.
    """
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    differences = (inputs @ weights.T.double()).softmax(dim=1) - one_hot(torch.tensor(labels), len(weights))
    gradient = differences.T @ inputs / len(labels)
    gradient = gradient + noise * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(7))
    others = draw_features(8, features.shape[1], seed=99)
    others = torch.cat([others, torch.ones(8, 1)], dim=1).double()
    return LastLayer(gradient, torch.full_like(gradient, noise), weights.double(), others, len(labels), **facts)


def draw_features(count: int, size: int, seed: int) -> Tensor:
    """Features as after a ReLU: none negative, some 0."""
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).clamp_min(0)


def draw_weights(classes: int, size: int, seed: int, scale: float = 0.3) -> Tensor:
    return scale * torch.randn(classes, size + 1, generator=torch.Generator().manual_seed(seed))
