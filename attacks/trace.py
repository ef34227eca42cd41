"""The images of an attack on its way, kept for someone who may compare them with the truth once the attack is over."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Watch = Callable[[int, int, float], None]
"""Is told after each evaluation how many an attack has spent, how many it may come to (0 if unknown), and the value."""


@dataclass(frozen=True)
class Snapshot:
    """Images float32 [N,C,H,W] in [0, 1] that ``evaluations`` and ``seconds`` had led to; on the CPU."""

    evaluations: int
    seconds: float
    images: Tensor


class Trace:
    """Snapshots of one attack, taken every few evaluations, and ever more rarely: every fiftieth of those spent.

    Its clock starts when it is made and stands still while it is at work itself.

    Args:
        every: evaluations between two snapshots, at least.

    Attributes:
        snapshots: in the order in which they were taken.
        own_seconds: how long taking them took.
    """

    def __init__(self, every: int = 5) -> None:
        self.every = every
        self.snapshots: list[Snapshot] = []
        self.own_seconds = 0.0
        self._next = 0
        self._started = time.perf_counter()

    def record(self, evaluations: int, images: Callable[[], Tensor]) -> None:
        """Take a snapshot of ``images()`` [N,C,H,W] in [-1, 1] if one is due after that many evaluations."""
        if evaluations < self._next:
            return
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # what is still queued there is the attack's time
        before = time.perf_counter()
        seconds = before - self._started - self.own_seconds
        self.snapshots.append(Snapshot(evaluations, seconds, to_unit_range(images())))
        self._next = evaluations + max(self.every, evaluations // 50)
        self.own_seconds += time.perf_counter() - before


def to_unit_range(images: Tensor) -> Tensor:
    """Images in [-1, 1], or beyond, as float32 in [0, 1] on the CPU."""
    return ((images.detach().float().cpu() + 1) / 2).clamp(0, 1)
