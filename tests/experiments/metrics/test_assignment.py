from experiments.metrics import assign
from tests.experiments.metrics.pairs import pair


def test_a_batch_is_assigned_by_its_total_error() -> None:
    first, second = pair()
    assert assign(first, second[[2, 0, 3, 1]]) == [1, 3, 0, 2]
