"""The timesteps behind an update, read off the gradient in closed form.

The first layer of the time MLP is linear in an embedding e(t) that has no trainable parameters. For N samples its
weight gradient is a sum of N rank-one terms, dW = sum_i delta_i e(t_i)^T, so its row space is spanned by the embeddings
of the timesteps that were used: a candidate t is a member exactly if e(t) has no component outside that space. Several
local SGD steps only add terms. The mechanism is that of inputs to a biased linear layer (Geiping et al. 2020, arXiv
2003.14053, proposition 3.1) and of span checks on language-model gradients (DAGER, arXiv 2405.15586).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.problem import InversionProblem

MINIMAL_MARGIN = 10.0
"""First rejected residual over last accepted one, below which the recovery says "unknown"."""


@dataclass(frozen=True)
class RecoveredTimesteps:
    """Timesteps int64 [N], ascending (all -1 when ``margin`` is too small to tell), and how clear the verdict was.

    ``margin`` is the projection residual of the first rejected candidate over that of the last accepted one.
    """

    timesteps: Tensor
    margin: float

    @property
    def known(self) -> bool:
        """Whether the timesteps could be told."""
        return bool((self.timesteps >= 0).all())


def embeddings(model: Any, num_train_timesteps: int) -> Tensor:
    """The model's own time embedding of every candidate, unit rows in float64 [T, D], on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        table = model.time_proj(torch.arange(num_train_timesteps, device=device))
    return nn.functional.normalize(table.double().cpu(), dim=1)


def recover_timesteps(problem: InversionProblem) -> RecoveredTimesteps:
    """Read the timesteps off the problem's gradient; unknown where the time MLP's gradient was not observed."""
    samples = problem.samples
    weight_gradient = problem.gradient.get("time_embedding.linear_1.weight")
    unknown = RecoveredTimesteps(torch.full((samples,), -1), 0.0)
    if weight_gradient is None:
        return unknown
    table = embeddings(problem.model, problem.scheduler.config.num_train_timesteps)
    if samples >= min(table.shape[1], weight_gradient.shape[0]):
        return unknown
    residuals = projection_residuals(weight_gradient, table, samples)
    order = residuals.argsort(stable=True)
    last_accepted, first_rejected = residuals[order[samples - 1]], residuals[order[samples]]
    margin = float(first_rejected / last_accepted.clamp_min(torch.finfo(torch.float64).tiny))
    if margin < MINIMAL_MARGIN:
        return RecoveredTimesteps(unknown.timesteps, margin)
    return RecoveredTimesteps(order[:samples].sort().values, margin)


def projection_residuals(weight_gradient: Tensor, table: Tensor, rank: int) -> Tensor:
    """Length of each unit embedding's part outside the leading ``rank`` right singular vectors of dW, in 0..1, [T]."""
    _, _, right = torch.linalg.svd(weight_gradient.double().cpu(), full_matrices=False)
    space = right[:rank]
    return (table - (table @ space.T) @ space).norm(dim=1)
