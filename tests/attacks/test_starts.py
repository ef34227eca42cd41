import math

from attacks.problem import InversionProblem
from attacks.starts import search_starts


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


def search(problem: InversionProblem, factors: list[float], budget: int) -> tuple[int, list[int]]:
    """Index of the run that was returned, and the number of slices every run got."""
    runs = [ScriptedRun(problem, factor) for factor in factors]
    best = search_starts(iter(runs), problem, budget, solved_below=2e-6)
    return runs.index(best), [len(run.losses) for run in runs]


def test_a_start_without_progress_is_left_for_the_next(victim):
    problem = InversionProblem(victim.observation, "cpu")
    index, slices = search(problem, [0.95, 0.1, 0.1], 2000)
    assert index == 1
    assert slices == [4, 6, 0]


def test_the_best_start_gets_what_is_left_of_the_budget(victim):
    problem = InversionProblem(victim.observation, "cpu")
    index, slices = search(problem, [0.95, 0.8, 0.9], 1000)
    assert index == 1
    assert slices[0] == slices[2] == 4
    assert problem.evaluations == 1000


def test_the_search_ends_when_every_start_broke_down(victim):
    problem = InversionProblem(victim.observation, "cpu")
    _, slices = search(problem, [math.inf, math.inf], 1000)
    assert slices == [1, 1]


def test_the_search_ends_when_the_best_start_stands_still(victim):
    problem = InversionProblem(victim.observation, "cpu")
    index, slices = search(problem, [0.999999, 0.9999999], 5000)
    assert index == 0
    assert slices == [4, 4]
