"""What a network is told of a sample beside its noisy image: the timestep, and the label where it takes one."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.attack import AttackError


class HiddenTimestepsError(AttackError):
    """Timesteps or labels that cannot be read off an update."""


class Conditions(NamedTuple):
    """Timesteps int64 [N] and labels int64 [N] of as many samples; ``labels`` is None where the network takes none."""

    timesteps: Tensor
    labels: Tensor | None = None

    def at(self, places: Tensor | Sequence[int]) -> "Conditions":
        """Those of the samples in these places, int64 [M]."""
        return Conditions(self.timesteps[places], None if self.labels is None else self.labels[places])

    def to(self, device: torch.device) -> "Conditions":
        """The same on another device."""
        return Conditions(self.timesteps.to(device), None if self.labels is None else self.labels.to(device))


def all_pairs(timesteps: Tensor, labels: Tensor | None) -> Conditions:
    """Every timestep int64 [T] with every label int64 [M]: label by label, as T M conditions.

    >>> all_pairs(torch.tensor([0, 1]), torch.tensor([5, 7]))
    Conditions(timesteps=tensor([0, 1, 0, 1]), labels=tensor([5, 5, 7, 7]))
    """
    if labels is None:
        return Conditions(timesteps)
    return Conditions(timesteps.repeat(len(labels)), labels.repeat_interleave(len(timesteps)))
