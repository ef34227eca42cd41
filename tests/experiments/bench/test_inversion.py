import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.bench import inversion
from experiments.bench.inversion import CASES, CEILING, CHANCE, METHODS, Scale, bench_inversion, split_images, tables
from experiments.public_images import check_disjoint
from fl_sim.config import SettingsError
from tests.attacks.model_inversion.conftest import TINY

SCALE = Scale(1, 2, 3, 1, 3, {"diff-mi": {**TINY, "variant": "public-images"}, "max-margin": {"iterations": 2}})


@pytest.mark.parametrize("name", CASES)
def test_public_held_out_and_private_images_are_different_ones(name: str) -> None:
    split = split_images(CASES[name], seed=1)
    check_disjoint(split.public, torch.cat([split.private, split.held_out]))
    check_disjoint(split.held_out, split.private)
    classes = set(range(len(CASES[name].classes)))
    assert set(split.labels.tolist()) == set(split.held_out_labels.tolist()) == classes
    assert len(split.public) > 100
    again, other = split_images(CASES[name], seed=1), split_images(CASES[name], seed=2)
    assert torch.equal(split.private, again.private)
    assert not torch.equal(split.private, other.private)


def test_every_method_and_both_references_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(inversion, "QUICK", SCALE)
    methods = {"most confident public images": METHODS["most confident public images"], **_untrained()}
    monkeypatch.setattr(inversion, "METHODS", methods)
    out = tmp_path / "out"
    bench_inversion(True, ["faces"], None, 1, 1, out, Console(quiet=True))
    written = json.loads((out / "inversion.json").read_text())
    (row,) = written["rows"]
    assert set(row["figures"]) == {CEILING, CHANCE, *methods}
    assert {line["method"] for line in written["figures"]} == set(row["figures"])
    for method, by_class in row["by_class"].items():
        mean = sum(by_class["psnr"]) / 2
        assert mean == pytest.approx(row["figures"][method]["psnr"]), method
    assert row["evaluations"]["classifier, no prior (max-margin)"] == 2 * 4 * 4
    assert (out / "inversion-faces-0.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "inversion.md").read_text()
    assert "chance of top-1: 0.50, of top-5: 1.00; targets: 1" in page


def _untrained():
    """The names that the one line about a row needs, without a diffusion model."""
    return {
        "classifier, no prior (max-margin)": ("max-margin", {}),
        "Diff-MI": ("diff-mi", {"variant": "public-images"}),
    }


def test_a_table_shows_the_median_and_the_range_over_the_targets() -> None:
    names = [name for name, _ in inversion.SHOWN.values()]
    rows = [
        {
            "case": "faces",
            "accuracy": 0.9,
            "evaluator_accuracy": 0.8 + 0.1 * value,
            "figures": {"Diff-MI": dict.fromkeys(names, value) | {"knn_successes": None if value else 3.0}},
        }
        for value in (0.0, 1.0, 0.3)
    ]
    (table,) = tables(rows)
    (line,) = table.rows
    cells = dict(zip(table.headings, line, strict=True))
    assert cells["evaluator top-1"] == "0.30 (0.00 to 1.00)"
    assert cells["KNN, successes"] == "3.0"
    assert table.notes[1] == ("held-out accuracy of the attacked classifier 0.90, of the evaluator 0.83 (0.80 to 0.90)")


def test_a_case_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--only digit-disjoint: unknown; .*did you mean 'digits-disjoint'?"):
        bench_inversion(True, ["digit-disjoint"], None, 1, 1, tmp_path / "out", Console(quiet=True))


def test_what_each_client_lost_is_shown_where_every_class_is_a_client() -> None:
    names = [name for name, _ in inversion.SHOWN.values()]

    def row(case: str, distance: float) -> dict[str, object]:
        by_class = {"evaluator_top1": [0.0, 0.25, 0.5, 0.75, 1.0], "knn_distance": [distance] * 5, "psnr": [12.0] * 5}
        figures = {"Diff-MI": dict.fromkeys(names, 1.0)}
        return {
            "case": case,
            "accuracy": 0.9,
            "evaluator_accuracy": 0.9,
            "figures": figures,
            "by_class": {"Diff-MI": by_class},
        }

    case = "digits-class-per-client"
    whole, clients, other = tables([row(case, 1.0), row(case, 3.0), row(case, 8.0), row("digits-disjoint", 1.0)])
    assert [table.title.partition(":")[0] for table in (whole, clients, other)] == [case, case, "digits-disjoint"]
    assert clients.headings == ("method", *(f"client {number}: {number}" for number in range(5)))
    assert clients.rows == [("Diff-MI", *(f"{top1:.2f}, 3.0, 12.0" for top1 in (0.0, 0.25, 0.5, 0.75, 1.0)))]
