import json

import pytest
from rich.console import Console

from experiments.bench import classification
from experiments.bench.cases import Contender
from experiments.bench.classification import bench_classification, cells
from experiments.bench.classifiers import ClassifierCase


def test_every_cell_is_measured_and_a_failure_counts_as_the_worst(monkeypatch, tmp_path):
    case = ClassifierCase(batch_size=2)
    contenders = (Contender("dlg", "dlg", {"max_evaluations": 3}), Contender("residual", "residual"))
    monkeypatch.setattr(classification, "cells", lambda _: ((case, contender) for contender in contenders))
    bench_classification(victims=2, quick=True, seed=1, jobs=1, out=tmp_path / "out", console=Console(quiet=True))
    content = json.loads((tmp_path / "out" / "classification.json").read_text())
    rows = content["rows"]
    assert [len(row["psnr"]) for row in rows] == [2] * 4
    assert [row["labels_exact"] for row in rows] == [True, True, False, False]
    assert [figures["labels"] for figures in content["figures"]] == ["2/2", "0/2"]
    assert (content["figures"][1]["dB"], content["figures"][1]["evals"]) == ("0.0", "-")
    page = (tmp_path / "out" / "classification.md").read_text()
    assert page.count("needs clients that train a diffusion model") == 1


@pytest.mark.parametrize(("quick", "attacks"), [(True, {"dlg"}), (False, {"dlg", "inverting-gradients"})])
def test_quick_leaves_out_what_takes_long(quick, attacks):
    assert {contender.attack for _, contender in cells(quick)} == attacks
