"""The report of a sweep, from its table."""

from pathlib import Path

import pandas as pd

from experiments.report import build_sweep_report
from experiments.run_directory import reading
from experiments.sweep.directory import SweepDirectory


def build_report(directory: SweepDirectory) -> Path:
    """Compare all runs on one page; returns the page. SettingsError if the table is missing or damaged."""
    directory.check_has_table()
    with reading(directory.path):
        table = pd.read_parquet(directory.parquet)
        axes = list(table.columns[: table.columns.get_loc("run")])
        return build_sweep_report(table, axes, directory.report)
