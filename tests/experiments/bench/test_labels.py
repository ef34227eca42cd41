import json

import pytest
import torch
from rich.console import Console

from attacks.labels.recovery import RecoveredLabels
from experiments.bench import labels
from experiments.bench.classifiers import ClassifierCase, make_classifying_victim
from experiments.bench.labels import bench_labels, judge


@pytest.mark.parametrize(
    ("found", "distinct", "expected"),
    [
        ([3, 7, 7], [3, 7], "exact"),
        ([3, 3, 7], [3, 7], "wrong"),
        ([-1, -1, -1], [3, 7], "unknown"),
        ([-1, -1, -1], [], "unknown"),
        ([-1, -1, -1], [3, 8], "wrong"),
    ],
)
def test_every_label_counts_and_how_often(found, distinct, expected):
    recovered = RecoveredLabels(torch.tensor(found), torch.tensor(distinct, dtype=torch.int64), 1.0)
    assert judge([7, 3, 7], recovered) == expected


def test_every_case_is_counted(monkeypatch, tmp_path):
    hopeless = ClassifierCase(defence="noise", strength=1000.0)
    monkeypatch.setattr(labels, "cases", lambda: iter((ClassifierCase(), hopeless)))
    bench_labels(victims=2, seed=1, jobs=1, out=tmp_path / "out", console=Console(quiet=True))
    found = json.loads((tmp_path / "out" / "labels.json").read_text())["rows"]
    assert [(case["exact"], case["unknown"], case["wrong"]) for case in found] == [(2, 0, 0), (0, 2, 0)]
    assert (tmp_path / "out" / "labels.md").read_text().count("\n| ") == 4


@pytest.mark.parametrize("data", ["digits", "photographs"])
def test_a_victim_is_a_function_of_seed_and_index_and_its_labels_are_private(data):
    case = ClassifierCase(data=data, batch_size=4, labels="repeated")
    first, again, other = (make_classifying_victim(case, 1, index) for index in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.observation.labels is None
    assert len(first.labels) == 4
    assert len(first.labels.unique()) <= 2


def test_distinct_labels_are_distinct_and_a_digit_shows_its_label():
    victim = make_classifying_victim(ClassifierCase(batch_size=8), 1, 0)
    assert len(victim.labels.unique()) == 8
    assert victim.images.shape == (8, 1, 16, 16)
