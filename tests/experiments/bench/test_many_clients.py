import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.bench.many_clients import PairMeasurement, Round, bench_many_clients, summarise


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


def test_a_pair_of_federations_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measure(pair: PairMeasurement) -> dict[str, Any]:
        measured.append(pair.pair)
        entries = rounds(2 * pair.pair, 2.0, [50.0] * 6) + rounds(2 * pair.pair + 1, 2.1, [50.0] * 6)
        return {"measured": [asdict(entry) for entry in entries]}

    monkeypatch.setattr(PairMeasurement, "measure", measure)
    for turns in (1, 2):
        bench_many_clients(20, 10, 6, turns, tmp_path, Console(quiet=True))
    assert measured == [0, 1]
    figures = json.loads((tmp_path / "many-clients.json").read_text())["figures"]
    assert figures["rounds_finished"] == 24
    assert figures["slowdown"] == pytest.approx(0.05)
    assert "| slowdown | 0.05 |" in (tmp_path / "many-clients.md").read_text()
