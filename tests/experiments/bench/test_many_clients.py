import pytest

from experiments.bench.many_clients import Round, summarise


def rounds(federation: int, seconds: float, memory: list[float]) -> list[Round]:
    attacked = federation % 2 == 1
    return [
        Round(federation, attacked, number, seconds, held, 0.5, 7 * attacked) for number, held in enumerate(memory, 1)
    ]


def test_figures_are_from_the_fifth_round_on():
    alone = rounds(0, 2.0, [10, 50, 90, 99, 100, 104, 103])
    attacked = rounds(1, 2.1, [100, 100, 100, 100, 110, 108, 111])
    slow_start = [Round(0, False, 1, 60.0, 0.0, 900.0, 0)]
    figures = summarise([*slow_start, *alone, *attacked])
    assert figures["rounds_finished"] == 15
    assert figures["slowdown"] == pytest.approx(0.05)
    assert figures["slowdown_standard_error"] is None
    assert figures["memory_growth_mb"] == 4
    assert (figures["object_store_mb_at_most"], figures["queued_at_most"]) == (0.5, 7)


def test_the_standard_error_is_that_of_pairs_of_federations():
    held = [50.0] * 6
    seconds = [1.0, 1.2, 3.0, 3.0, 2.0, 2.1]
    figures = summarise([entry for number, each in enumerate(seconds) for entry in rounds(number, each, held)])
    assert figures["slowdown"] == pytest.approx(0.05)
    assert figures["slowdown_standard_error"] == pytest.approx(0.1 / 3**0.5 / 2.0)
