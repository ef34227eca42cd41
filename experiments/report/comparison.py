"""Several runs side by side."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from experiments.report.charts import Reference, leakage_charts, recognisable
from experiments.report.page import columns_and_rows, write_page
from experiments.report.run import Run
from experiments.report.single import points_of


def build_comparison(paths: Sequence[Path], out: Path) -> Path:
    """Write one page that sets several runs side by side to ``out``; SettingsError if one of ``paths`` is no run."""
    runs = [Run.read(path) for path in paths]
    points = pd.concat([points_of(run, run.leakage, _series(run)) for run in runs], ignore_index=True)
    levels: list[Reference] = [recognisable()]
    return write_page(
        out,
        "comparison.html.j2",
        runs=runs,
        differences=_differences(runs),
        charts=leakage_charts(points, levels),
        points=columns_and_rows(points.assign(index=points.index)),
        links={run.name: link for run in runs if (link := link_to(run.directory.report, out))},
    )


def link_to(report: Path, page: Path) -> str | None:
    """The address of a report as seen from ``page``; None where there is no such report."""
    if not report.is_file():
        return None
    return quote(Path(os.path.relpath(report.resolve(), page.resolve().parent)).as_posix())


def _series(run: Run) -> str:
    """How a run's points are called, with the attack where there are several."""
    name = run.name.replace("{", "{{").replace("}", "}}")
    return f"{name} · {{attack}}" if len(run.summaries) > 1 else name


def _differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings in which runs differ: key -> one value per run."""
    flat = [_flatten(run.settings.model_dump(mode="json")) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [str(settings.get(key, "")) for settings in flat] for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
