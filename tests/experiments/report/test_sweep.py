import itertools
import math
from pathlib import Path

import pandas as pd
import pytest

from experiments.report import build_report, build_sweep_report
from tests.experiments.made_up_run import make_up_run
from tests.experiments.report_page import Page

FIGURES = {"attack": "residual", "images": 4, "timesteps_recovered": 3, "utility": 0.1, "seed": 0, "status": "ended"}


def sweep(*points: dict[str, object]) -> pd.DataFrame:
    """A table with a run for every point."""
    rows = [{"run": f"run-{number}", "directory": f"run-{number}"} | FIGURES for number in range(len(points))]
    frame = pd.DataFrame([row | point for row, point in zip(rows, points, strict=True)])
    return frame.astype({"images": "Int64", "timesteps_recovered": "Int64", "utility": "float64"})


def grid() -> pd.DataFrame:
    """Two settings in all combinations, each twice; the last run failed."""
    points = [
        {
            "client.batch_size": size,
            "client.local_steps": steps,
            "seed": seed,
            "median_psnr": 60.0 / size - steps + seed,
            "share_recognisable": 1.0 / size,
            "utility": 0.1 * size * steps,
        }
        for size, steps, seed in itertools.product((1, 2, 10), (1, 3), (0, 1))
    ]
    points[-1] |= {"median_psnr": math.nan, "share_recognisable": math.nan, "utility": math.nan, "status": "timeout"}
    return sweep(*points)


def test_a_grid_has_small_multiples_a_heat_map_and_a_front(tmp_path: Path) -> None:
    page = Page(build_sweep_report(grid(), ["client.batch_size", "client.local_steps"], tmp_path / "sweep.html"))
    assert "between 10 % of the private images" in page.text
    assert "and 100 % of the private images (60.0 dB at the median" in page.text
    assert page.charts[0].endswith("client.local_steps = 1. 1: 59.50; 2: 29.50; 10: 5.50.")
    assert page.charts[1].endswith("client.local_steps = 3. 1: 57.50; 2: 27.50; 10: 3.00.")
    assert "1, 1: 59.50" in page.charts[4]
    assert (
        page.charts[5]
        == "Leakage against held-out loss. On the Pareto front: "
        + "; ".join(
            (
                "run-0: 0.1, 59.0 dB",
                "run-4: 0.2, 29.0 dB",
                "run-6: 0.6, 27.0 dB",
                "run-8: 1, 5.0 dB",
                "run-10: 3, 3.0 dB",
            )
        )
        + "."
    )
    assert "run-11timeout" in page.text.replace("run-11 timeout", "run-11timeout")


def test_settings_that_only_some_runs_have_make_one_axis(tmp_path: Path) -> None:
    named = ["defence.name", "defence.args.fraction", "defence.args.clip_norm"]
    table = sweep(
        {"defence.name": "none", "median_psnr": 60.0, "share_recognisable": 1.0},
        {"defence.name": "top-k", "defence.args.fraction": 0.1, "median_psnr": 30.0, "share_recognisable": 0.5},
        {"defence.name": "top-k", "defence.args.fraction": 0.01, "median_psnr": 20.0, "share_recognisable": 0.0},
        {"defence.name": "clip-noise", "defence.args.clip_norm": 0.5, "median_psnr": 9.0, "share_recognisable": 0.0},
    )
    page = Page(build_sweep_report(table, named, tmp_path / "sweep.html"))
    assert page.charts[0].endswith(
        "none: 60.00; top-k, fraction = 0.1: 30.00; top-k, fraction = 0.01: 20.00; clip-noise, clip_norm = 0.5: 9.00."
    )


def test_runs_are_linked_where_they_have_a_report(tmp_path: Path) -> None:
    made = make_up_run(tmp_path / "run-0", "seed=1")
    build_report(made.path)
    seeds = (0, 2**62 + 1)
    table = sweep(*({"seed": seed, "median_psnr": 60.0, "share_recognisable": 1.0} for seed in seeds))
    page = Page(build_sweep_report(table, [], tmp_path / "report.html"))
    assert [point["seed"] for point in page.table("points")] == [str(seed) for seed in seeds]
    assert page.sources.count("run-0/report.html") == 1
    assert not any("run-1" in source for source in page.sources)
    assert "Whatever was set, the attacks reconstructed 100 % of the private images." in page.text


@pytest.mark.parametrize("psnr", [math.nan, math.inf])
def test_figures_that_are_no_numbers_are_shown(tmp_path: Path, psnr: float) -> None:
    share = math.nan if math.isnan(psnr) else 1.0
    point = {"client.batch_size": 1, "median_psnr": psnr, "share_recognisable": share, "utility": math.inf}
    page = Page(build_sweep_report(sweep(point), ["client.batch_size"], tmp_path / "sweep.html"))
    assert ("It is not known yet" in page.text) == math.isnan(psnr)


def test_a_classifier_is_judged_by_its_accuracy(tmp_path: Path) -> None:
    settings = ("task=classification", "data.name=digits", "data.partition=iid", "model.classes=10")
    make_up_run(tmp_path / "run-0", *settings, "attack.name=none")
    table = sweep({"median_psnr": 60.0, "share_recognisable": 1.0, "utility": 0.9})
    assert "held-out accuracy" in Page(build_sweep_report(table, [], tmp_path / "report.html")).text
