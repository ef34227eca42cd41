"""Which measurements a benchmark makes."""

from typing import Any, TypeVar

import pytest

from experiments.bench.benchmark import Measurement

M = TypeVar("M", bound=Measurement)


def watch(monkeypatch: pytest.MonkeyPatch, kind: type[M]) -> list[M]:
    """A list that grows by every measurement of this kind that is made from now on."""
    made: list[M] = []
    measure = kind.measure

    def watched(measurement: M) -> dict[str, Any]:
        made.append(measurement)
        return measure(measurement)

    monkeypatch.setattr(kind, "measure", watched)
    return made
