"""The pages that show what leaked: of a run, of several, of a sweep; one HTML file each, that opens offline."""

from experiments.report.comparison import build_comparison
from experiments.report.single import build_report
from experiments.report.sweep import build_sweep_report

__all__ = ["build_comparison", "build_report", "build_sweep_report"]
