"""A search with Adam that remembers the best point it saw."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.inversion.gradient_matching import Objective

_PATIENCE = 100
_PROGRESS = 0.9


def adam_search(
    objective: Objective,
    start: Sequence[Tensor],
    iterations: int,
    lr: float,
    eps: float = 1e-8,
    solved_below: float | None = None,
) -> list[Tensor]:
    """The point with the smallest value among ``iterations`` steps of Adam (Kingma and Ba 2014, arXiv 1412.6980).

    With ``solved_below`` it stops earlier: at a value that small, or when 100 steps did not take a tenth off the
    smallest.
    """
    unknowns = [value.detach().clone().requires_grad_() for value in start]
    optimizer = torch.optim.Adam(unknowns, lr=lr, eps=eps)
    best = [unknown.detach().clone() for unknown in unknowns]
    smallest = [math.inf]
    for _ in range(iterations):
        value, derivatives = objective(unknowns)
        if value < smallest[-1]:
            best = [unknown.detach().clone() for unknown in unknowns]
        smallest.append(min(float(value), smallest[-1]))
        if solved_below is not None and (smallest[-1] <= solved_below or _stalled(smallest)):
            break
        for unknown, derivative in zip(unknowns, derivatives, strict=True):
            unknown.grad = derivative
        optimizer.step()
    return best


def _stalled(smallest: Sequence[float]) -> bool:
    return len(smallest) > _PATIENCE + 1 and smallest[-1] > _PROGRESS * smallest[-1 - _PATIENCE]
