import json

import pytest
import torch
from rich.console import Console

from attacks.timesteps.recovery import RecoveredTimesteps
from experiments.bench import timesteps
from experiments.bench.cases import Case
from experiments.bench.timesteps import bench_timesteps, judge


@pytest.mark.parametrize(
    ("found", "distinct", "expected"),
    [
        ([3, 7, 7], [3, 7], "exact"),
        ([3, 3, 7], [3, 7], "wrong"),
        ([-1, -1, -1], [3, 7], "distinct"),
        ([-1, -1, -1], [3, 8], "wrong"),
        ([-1, -1, -1], [], "unknown"),
    ],
)
def test_every_timestep_counts_and_how_often(found, distinct, expected):
    recovered = RecoveredTimesteps(torch.tensor(found), torch.tensor(distinct, dtype=torch.int64), 1.0)
    assert judge([7, 3, 7], recovered) == expected


def test_every_case_is_counted(monkeypatch, tmp_path):
    easy = Case(suite="timesteps", timesteps=(0, 999))
    hopeless = Case(suite="timesteps", timesteps=(0, 999), defence="noise", strength=100.0)
    monkeypatch.setattr(timesteps, "cases", lambda: iter((easy, hopeless)))
    bench_timesteps(victims=2, seed=1, jobs=1, out=tmp_path / "out", console=Console(quiet=True))
    found = json.loads((tmp_path / "out" / "timesteps.json").read_text())["rows"]
    assert [(case["exact"], case["unknown"], case["wrong"]) for case in found] == [(2, 0, 0), (0, 2, 0)]
    assert found[0]["largest_margin_unknown"] is None
    assert (tmp_path / "out" / "timesteps.md").read_text().count("\n| ") == 4
