from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from attacks.inversion.adam import adam_search


class Bowl:
    """|u|^2, which counts its evaluations."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        self.points.append(unknowns[0].detach().clone())
        return unknowns[0].detach().square().sum(), [2 * unknowns[0].detach()]


def test_it_steps_like_torch():
    start, reference = torch.tensor([3.0, -2.0]), torch.tensor([3.0, -2.0], requires_grad=True)
    optimizer = torch.optim.Adam([reference], lr=0.1)
    for _ in range(9):
        reference.grad = 2 * reference.detach()
        optimizer.step()
    (found,) = adam_search(Bowl(), [start], iterations=10, lr=0.1)
    assert torch.equal(found, reference.detach())
    assert start.tolist() == [3.0, -2.0]


def test_the_best_point_is_kept_though_later_ones_are_worse():
    bowl = Bowl()
    (found,) = adam_search(bowl, [torch.tensor([1.0])], iterations=40, lr=0.4)
    smallest = min(bowl.points, key=lambda point: float(point.square()))
    assert torch.equal(found, smallest)
    assert not torch.equal(found, bowl.points[-1])


@pytest.mark.parametrize(("solved_below", "evaluations"), [(None, 500), (1e-2, 11)])
def test_it_stops_when_solved_if_told_to(solved_below, evaluations):
    bowl = Bowl()
    adam_search(bowl, [torch.tensor([1.0])], iterations=500, lr=0.1, solved_below=solved_below)
    assert len(bowl.points) == evaluations


def test_it_stops_without_progress_if_told_to():
    bowl = Bowl()
    adam_search(bowl, [torch.tensor([1.0])], iterations=500, lr=1e-9, solved_below=0)
    assert len(bowl.points) == 101
