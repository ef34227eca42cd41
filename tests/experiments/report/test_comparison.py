from pathlib import Path

from experiments.report import build_comparison, build_report
from tests.experiments.made_up_run import make_up_run
from tests.experiments.report_page import Page


def test_runs_are_set_side_by_side(tmp_path: Path) -> None:
    runs = [make_up_run(tmp_path / name, f"seed={seed}").path for name, seed in (("first", 1), ("second", 2))]
    build_report(runs[0])
    page = Page(build_comparison(runs, tmp_path / "comparison.html"))
    assert "2 runs side by side" in page.text
    assert page.text.count(str(runs[0])) == 2
    assert "seed" in page.text
    assert {point["series"] for point in page.table("points")} == {"first", "second"}
    assert page.charts[0].startswith("PSNR by round. first: medians in dB: ")
    assert "first/report.html" in page.sources
    assert "second/report.html" not in page.sources


def test_defences_are_compared(tmp_path: Path) -> None:
    plain = make_up_run(tmp_path / "plain").path
    thinned = make_up_run(tmp_path / "thinned", "defence.name=top-k", "defence.args.fraction=0.1").path
    page = Page(build_comparison([plain, thinned], tmp_path / "comparison.html"))
    told = next(text for text in page.charts if text.startswith("PSNR by defence"))
    assert "none: " in told
    assert "top-k, fraction = 0.1: " in told


def test_a_name_with_braces_is_a_name(tmp_path: Path) -> None:
    run = make_up_run(tmp_path / "{attack}{0}", "attack.name=['residual', 'dlg']").path
    page = Page(build_comparison([run], tmp_path / "comparison.html"))
    assert {point["series"] for point in page.table("points")} == {"{attack}{0} · residual", "{attack}{0} · dlg"}
