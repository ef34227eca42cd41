from experiments.estimate import Cost
from experiments.sweep.plan import describe


def test_the_plan_adds_up() -> None:
    costs = {"a": Cost(10, 4, 100), "b": Cost(30, 4, 20)}
    table, lines = describe(costs, repetitions=3, jobs=2)
    assert table.row_count == 2
    # Three times (30 + 50) and three times (120 + 50) seconds, two at a time.
    assert lines[0] == "2 points, 3 repetitions each: 6 runs, 2 at a time: 2 min to 4 min"
    assert describe(costs, repetitions=1, jobs=8)[1][0] == "2 runs, 2 at a time: 40 s to 85 s"
