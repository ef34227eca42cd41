"""Adam that returns the best point it saw."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.inversion.gradient_matching import Objective


def adam_search(
    objective: Objective,
    start: Sequence[Tensor],
    iterations: int,
    lr: float | Sequence[float],
    eps: float = 1e-8,
    solved_below: float | None = None,
    patience: int = 100,
    stall_ratio: float = 0.9,
) -> list[Tensor]:
    """The point with the smallest value among ``iterations`` steps of Adam (Kingma and Ba 2014, arXiv 1412.6980).

    Args:
        objective: from unknowns to value and derivative.
        start: the unknowns to start from.
        iterations: most steps.
        lr: Adam's step, of all unknowns or of each.
        eps: Adam's eps.
        solved_below: if given, the search also ends at a value that small, or when it stalls.
        patience: steps after which a search that makes no progress ends.
        stall_ratio: it makes none if the smallest value is above so many times that of ``patience`` steps ago.
    """
    unknowns = [value.detach().clone().requires_grad_() for value in start]
    rates = lr if isinstance(lr, Sequence) else [lr] * len(unknowns)
    groups = [{"params": [unknown], "lr": rate} for unknown, rate in zip(unknowns, rates, strict=True)]
    optimizer = torch.optim.Adam(groups, eps=eps)
    best = [unknown.detach().clone() for unknown in unknowns]
    smallest = [math.inf]
    for _ in range(iterations):
        value, derivatives = objective(unknowns)
        if value < smallest[-1]:
            best = [unknown.detach().clone() for unknown in unknowns]
        smallest.append(min(float(value), smallest[-1]))
        stalled = len(smallest) > patience + 1 and smallest[-1] > stall_ratio * smallest[-1 - patience]
        if solved_below is not None and (smallest[-1] <= solved_below or stalled):
            break
        for unknown, derivative in zip(unknowns, derivatives, strict=True):
            unknown.grad = derivative
        optimizer.step()
    return best
