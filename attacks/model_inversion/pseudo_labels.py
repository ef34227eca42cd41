"""Pseudo-labels: the public images that the classifier takes for each of its classes.

The selection of Diff-MI (arXiv 2407.11424) and, before it, of PLG-MI (arXiv 2302.09814): the n images with the highest
probability of a class, for every class. An image may be among those of several classes.
"""

from torch import Tensor


def most_confident(logits: Tensor, count: int) -> Tensor:
    """The indices int64 [K,n] of the n = min(``count``, M) images with the highest softmax probability of each class.

    ``logits`` are [M,K]. The most probable comes first.

    >>> import torch
    >>> most_confident(torch.tensor([[0.0, 1.0], [3.0, 0.0], [2.0, 0.0]]), 2)
    tensor([[1, 2],
            [0, 2]])
    """
    log_probabilities = logits.double().log_softmax(dim=1)  # tells probabilities apart that float32 rounds to 1
    return log_probabilities.sort(dim=0, descending=True, stable=True).indices[:count].T
