"""The report of a sweep: how leakage and utility change with the settings that were swept."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.report.charts import drawable
from experiments.report.comparison import link_to
from experiments.report.page import columns_and_rows, write_page
from experiments.report.sweep_charts import LEVEL, MEASURES, SHARE, Axis, against_utility, heat_maps, small_multiples
from experiments.report.verdict import decibels, percent
from experiments.run_directory import RunDirectory
from fl_sim.errors import UserError

NO_VALUE = "\N{EN DASH}"


def build_sweep_report(table: pd.DataFrame, axes: list[str], out: Path) -> Path:
    """Write the report of a sweep to ``out``; returns ``out``.

    Args:
        table: one row for every run and attack: a column for each of ``axes``, and ``run``, ``directory`` (relative to
            the folder of ``out``), ``status``, ``attack``, ``median_psnr`` (dB), ``share_recognisable`` (in [0, 1]),
            ``images``, ``timesteps_recovered``, ``utility`` (held-out loss or accuracy) and ``seed``. Figures are
            missing where a run has none. Runs that differ in nothing but the seed repeat one another.
        axes: the settings that vary, by their dotted names.
        out: the page.
    """
    named, drawn = _axes(table, axes)
    series = table["attack"].astype("object").fillna("no attack").to_numpy()
    rows = table.reset_index(drop=True).assign(series=series, **named)
    rows["utility"] = rows["utility"].where(np.isfinite(rows["utility"]))
    rows[LEVEL.column] = drawable(rows[LEVEL.column])
    reports = {str(name): link_to(out.parent / str(name) / "report.html", out) for name in table["directory"].dropna()}
    utility, more_is_better = _utility(out.parent, reports)
    rows["seed"] = rows["seed"].astype("str")  # scripts would round it
    points = rows[["run", "series", "images", "utility", "seed", LEVEL.column, SHARE.column, *named]]
    return write_page(
        out,
        "sweep.html.j2",
        runs=table["run"].nunique(),
        axes=axes,
        verdict=_verdict(rows, drawn),
        multiples={measure.name: small_multiples(rows, drawn, measure) for measure in MEASURES},
        heat_maps=heat_maps(rows, drawn),
        pareto=against_utility(rows, drawn, utility, more_is_better),
        utility=utility,
        points=columns_and_rows(points.assign(report=rows["directory"].map(lambda name: reports.get(str(name))))),
        table=table,
        reports=reports,
        problems=_problems(table),
    )


def _axes(table: pd.DataFrame, names: Sequence[str]) -> tuple[dict[str, pd.Series], list[Axis]]:
    """What is drawn of the settings: columns of texts by name, and those of them that have several values.

    The settings of a section of which some runs lack one, as the arguments of defences are, count as one setting.
    """
    columns: dict[str, pd.Series] = {}
    axes = []
    for title, together in _together(table, names).items():
        cells = [[_short(name, row) for name in together] for row in table[together].to_dict("records")]
        texts = pd.Series([", ".join(filter(None, row)) or NO_VALUE for row in cells], dtype="object")
        keys = table[together[0]] if len(together) == 1 else texts
        ordered = pd.DataFrame({"key": keys.to_numpy(), "text": texts}).drop_duplicates("text")
        if pd.api.types.is_numeric_dtype(keys):
            ordered = ordered.sort_values("key")
        column = f"axis{len(columns)}"
        columns[column] = texts
        if len(ordered) > 1:
            axes.append(Axis(column, title, tuple(ordered["text"])))
    return columns, axes


def _together(table: pd.DataFrame, names: Sequence[str]) -> dict[str, list[str]]:
    """The settings that make one axis, by its title."""
    sections = {name.partition(".")[0] for name in names if bool(table[name].isna().any())}
    grouped: dict[str, list[str]] = {}
    for name in names:
        section = name.partition(".")[0]
        grouped.setdefault(section if section in sections else name, []).append(name)
    return {(together[0] if len(together) == 1 else title): together for title, together in grouped.items()}


def _short(name: str, row: dict[Any, Any]) -> str:
    """A setting's value as text, with the last part of its name where it is an argument; empty if it is missing."""
    value = row[name]
    if pd.isna(value):
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{name.rpartition('.')[2]} = {text}" if ".args." in name else text


def _verdict(rows: pd.DataFrame, axes: Sequence[Axis]) -> str:
    """The sweep in a sentence: where most and where least was reconstructed."""
    told = rows[rows["share_recognisable"].notna()].sort_values(["share_recognisable", "median_psnr"])
    if told.empty:
        return "It is not known yet what the swept settings change: no attack of any run has ended."
    least, most = told.iloc[0], told.iloc[-1]

    def figures(row: Any) -> str:
        where = ", ".join(f"{axis.title} = {row[axis.column]}" for axis in axes)
        median = "no result" if pd.isna(row[LEVEL.column]) else f"{decibels(row[LEVEL.column])} at the median"
        return f"{percent(row[SHARE.column])} of the private images ({median}; {where or row['run']})"

    if least[SHARE.column] == most[SHARE.column]:
        return f"Whatever was set, the attacks reconstructed {percent(least[SHARE.column])} of the private images."
    return f"The attacks reconstructed between {figures(least)} and {figures(most)}."


def _problems(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The runs that have no figures, and why."""
    without = table[table["share_recognisable"].isna()].drop_duplicates("run")
    return [(str(run), str(status)) for run, status in zip(without["run"], without["status"], strict=True)]


def _utility(folder: Path, directories: Iterable[str]) -> tuple[str, bool]:
    """What the utility of these runs is, and whether more of it is better."""
    for name in directories:
        try:
            task = RunDirectory.open(folder / name).settings().task
        except (UserError, OSError):
            continue
        return ("held-out accuracy", True) if task == "classification" else ("held-out loss", False)
    return "held-out loss", False
