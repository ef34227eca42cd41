import math
from collections.abc import Sequence

from attacks.inversion.budget import Budget
from attacks.inversion.restarts import Patience, race, run_until_stalled, search_starts, successive_halving


class ScriptedRun:
    """Its loss falls by ``factor`` in every slice."""

    def __init__(self, budget: Budget, factor: float) -> None:
        self.budget, self.factor, self.losses = budget, factor, []

    @property
    def loss(self) -> float:
        return self.losses[-1] if self.losses else math.inf

    def advance(self, evaluations: int) -> float:
        self.budget.counter.evaluations += evaluations
        self.losses.append(self.factor ** (len(self.losses) + 1))
        return self.loss


def search(budget: Budget, factors: Sequence[float]) -> tuple[int, list[int]]:
    """Index of the run that was returned, and the number of slices every run got."""
    runs = [ScriptedRun(budget, factor) for factor in factors]
    best = search_starts(iter(runs), budget, 2e-6, 2.0, Patience())
    return runs.index(best), [len(run.losses) for run in runs]


def test_a_start_without_progress_is_left_for_the_next():
    index, slices = search(Budget(2000), [0.95, 0.1, 0.1])
    assert index == 1
    assert slices == [4, 6, 0]


def test_the_best_of_all_starts_is_returned():
    index, slices = search(Budget(1000), [0.95, 0.8, 0.9])
    assert index == 1
    assert slices == [4, 4, 4]


def test_the_budget_ends_the_search():
    budget = Budget(250)
    _, slices = search(budget, [0.95] * 9)
    assert slices[:3] == [4, 3, 0]
    assert budget.spent == 250


def test_a_start_that_breaks_down_is_left_at_once():
    _, slices = search(Budget(1000), [math.inf, math.inf])
    assert slices == [1, 1]


def test_in_a_race_who_falls_behind_drops_out_and_the_lead_may_change():
    budget = Budget(10_000)
    late, steady, hopeless = (ScriptedRun(budget, factor) for factor in (0.7, 0.75, 0.2))
    late.losses, steady.losses, hopeless.losses = [1.0] * 3, [0.8] * 3, [3.0] * 3
    hopeless.factor = 0.99
    assert race([late, steady, hopeless], budget, 1.1, 2.0, Patience()) is late
    assert len(hopeless.losses) == 4
    assert len(late.losses) == len(steady.losses) > 8


def test_a_race_ends_when_nobody_gets_on():
    budget = Budget(10_000)
    first, second = ScriptedRun(budget, 0.98), ScriptedRun(budget, 0.985)
    assert race([first, second], budget, 1.1, 2.0, Patience()) is first
    assert len(first.losses) == 4
    assert race([second], budget, 1.1, 2.0, Patience()) is second


def test_the_budget_ends_a_race():
    budget = Budget(200)
    runs = [ScriptedRun(budget, 0.5), ScriptedRun(budget, 0.51)]
    race(runs, budget, 1.1, 2.0, Patience())
    assert [len(run.losses) for run in runs] == [3, 3]
    assert budget.spent == 200


def test_halving_leaves_as_many_finalists_as_are_asked_for():
    budget = Budget(10_000)
    runs = [ScriptedRun(budget, 0.9 - 0.01 * index) for index in range(24)]
    assert successive_halving(list(runs), 15, finalists=3) == [runs[23], runs[22], runs[21]]


def test_a_slow_search_goes_on_until_it_stands_still():
    budget = Budget(10_000)
    slow, still = ScriptedRun(budget, 0.999), ScriptedRun(budget, 0.9999999)
    for run in (slow, still):
        run_until_stalled(run, budget.more(800), 1e-6, 1 + 1e-5, Patience())
    assert [len(run.losses) for run in (slow, still)] == [20, 4]
    left = ScriptedRun(budget, 0.999)
    run_until_stalled(left, budget.more(800), 1e-6, 2.0, Patience())
    assert len(left.losses) == 4


def test_slices_grow_with_the_square_root_of_the_number_of_images():
    assert [Patience().for_samples(count).slice_evaluations for count in (1, 4, 8)] == [40, 80, 113]
