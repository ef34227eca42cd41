import math
from collections.abc import Sequence

from attacks.inversion.problem import InversionProblem
from attacks.inversion.restarts import PROGRESS, STANDSTILL, race, search_on, search_starts, successive_halving


class ScriptedRun:
    """Its loss falls by ``factor`` in every slice."""

    def __init__(self, problem: InversionProblem, factor: float) -> None:
        self.problem, self.factor, self.losses = problem, factor, []

    @property
    def loss(self) -> float:
        return self.losses[-1] if self.losses else math.inf

    def advance(self, evaluations: int) -> float:
        self.problem.evaluations += evaluations
        self.losses.append(self.factor ** (len(self.losses) + 1))
        return self.loss


def search(problem: InversionProblem, factors: Sequence[float], budget: int) -> tuple[int, list[int]]:
    """Index of the run that was returned, and the number of slices every run got."""
    runs = [ScriptedRun(problem, factor) for factor in factors]
    best = search_starts(iter(runs), problem, budget, below=2e-6)
    return runs.index(best), [len(run.losses) for run in runs]


def test_a_start_without_progress_is_left_for_the_next(victim):
    index, slices = search(InversionProblem(victim.observation, "cpu"), [0.95, 0.1, 0.1], 2000)
    assert index == 1
    assert slices == [4, 6, 0]


def test_the_best_of_all_starts_is_returned(victim):
    index, slices = search(InversionProblem(victim.observation, "cpu"), [0.95, 0.8, 0.9], 1000)
    assert index == 1
    assert slices == [4, 4, 4]


def test_the_budget_ends_the_search(victim):
    problem = InversionProblem(victim.observation, "cpu")
    _, slices = search(problem, [0.95] * 9, 250)
    assert slices[:3] == [4, 3, 0]
    assert problem.evaluations == 250


def test_a_start_that_breaks_down_is_left_at_once(victim):
    _, slices = search(InversionProblem(victim.observation, "cpu"), [math.inf, math.inf], 1000)
    assert slices == [1, 1]


def test_in_a_race_who_falls_behind_drops_out_and_the_lead_may_change(victim):
    problem = InversionProblem(victim.observation, "cpu")
    late, steady, hopeless = (ScriptedRun(problem, factor) for factor in (0.7, 0.75, 0.2))
    late.losses, steady.losses, hopeless.losses = [1.0] * 3, [0.8] * 3, [3.0] * 3
    hopeless.factor = 0.99
    assert race([late, steady, hopeless], problem, 10_000) is late
    assert len(hopeless.losses) == 4
    assert len(late.losses) == len(steady.losses) > 8


def test_a_race_ends_when_nobody_gets_on(victim):
    problem = InversionProblem(victim.observation, "cpu")
    first, second = ScriptedRun(problem, 0.98), ScriptedRun(problem, 0.985)
    assert race([first, second], problem, 10_000) is first
    assert len(first.losses) == 4
    assert race([second], problem, 10_000) is second


def test_the_budget_ends_a_race(victim):
    problem = InversionProblem(victim.observation, "cpu")
    runs = [ScriptedRun(problem, 0.5), ScriptedRun(problem, 0.51)]
    race(runs, problem, 200)
    assert [len(run.losses) for run in runs] == [3, 3]
    assert problem.evaluations == 200


def test_halving_leaves_as_many_finalists_as_are_asked_for(victim):
    problem = InversionProblem(victim.observation, "cpu")
    runs = [ScriptedRun(problem, 0.9 - 0.01 * index) for index in range(24)]
    assert successive_halving(list(runs), 15, finalists=3) == [runs[23], runs[22], runs[21]]


def test_a_slow_search_goes_on_until_it_stands_still(victim):
    problem = InversionProblem(victim.observation, "cpu")
    slow, still = ScriptedRun(problem, 0.999), ScriptedRun(problem, 0.9999999)
    for run in (slow, still):
        search_on(run, problem, problem.evaluations + 800, 1e-6, STANDSTILL)
    assert [len(run.losses) for run in (slow, still)] == [20, 4]
    left = ScriptedRun(problem, 0.999)
    search_on(left, problem, problem.evaluations + 800, 1e-6, PROGRESS)
    assert len(left.losses) == 4
