import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from attacks.inversion.lbfgs import LBFGSRun


def rosenbrock(unknowns: Sequence[Tensor], scale: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    x, y = unknowns
    value = scale * ((1 - x).square() + 100 * (y - x.square()).square()).sum()
    return value.detach(), list(torch.autograd.grad(value, [x, y]))


def start() -> list[Tensor]:
    return [torch.tensor([-1.2], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)]


def test_it_finds_the_minimum_in_slices():
    run = LBFGSRun(rosenbrock, start())
    assert run.loss == math.inf
    for _ in range(6):
        run.advance(20)
    assert run.losses == sorted(run.losses, reverse=True)
    assert run.loss < 1e-12
    assert all(torch.allclose(unknown, torch.ones_like(unknown), atol=1e-5) for unknown in run.point)


def test_a_slice_goes_on_with_the_curvature_of_the_last_one():
    resumed = restarted = LBFGSRun(rosenbrock, start())
    for _ in range(9):
        resumed.advance(4)
        restarted = LBFGSRun(rosenbrock, restarted.point)
        restarted.advance(4)
    assert resumed.loss < 0.1 * restarted.loss


def test_tiny_losses_keep_their_curvature():
    run = LBFGSRun(lambda unknowns: rosenbrock(unknowns, 1e-10), start())
    for _ in range(6):
        run.advance(20)
    assert run.loss < 1e-20


def test_a_slice_keeps_to_its_budget():
    spent = []
    run = LBFGSRun(lambda unknowns: (spent.append(1), rosenbrock(unknowns))[1], start())
    run.advance(15)
    assert len(spent) <= 15 + 25


def test_the_start_is_copied():
    given = start()
    LBFGSRun(rosenbrock, given).advance(10)
    assert [float(value) for value in given] == [-1.2, 1.0]


@pytest.mark.parametrize("finite", [20, 1], ids=["on its way", "in the first line search"])
@pytest.mark.parametrize("derivative", [1.0, math.nan], ids=["value", "value and derivative"])
def test_a_breakdown_ends_the_run_where_it_was(finite, derivative):
    calls = []

    def breaks(unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        calls.append(1)
        value, derivatives = rosenbrock(unknowns)
        broken = value * math.nan, [d * derivative for d in derivatives]
        return (value, derivatives) if len(calls) <= finite else broken

    run = LBFGSRun(breaks, start())
    for _ in range(4):
        run.advance(20)
    assert run.loss == math.inf
    assert all(torch.isfinite(unknown).all() for unknown in run.point)
