"""The charts of a sweep: small multiples, heat maps over two settings, and leakage against utility."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.report.charts import COLOUR, COLOURS, ROWS, Chart, Spec, field, layout

MOST_HEAT_MAPS = 6
"""Pairs of settings and attacks beyond these have no heat map; the table has their figures."""


@dataclass(frozen=True)
class Measure:
    """A figure of a run: its column, its title, and how it is written."""

    column: str
    title: str
    form: str

    @property
    def name(self) -> str:
        """The title as it begins a line, of which acronyms stay as they are."""
        return self.title[0].upper() + self.title[1:]


LEVEL = Measure("median_psnr", "median PSNR (dB)", ".1f")
SHARE = Measure("share_recognisable", "share of images reconstructed", ".0%")
MEASURES = (LEVEL, SHARE)
LEAST_SPAN = 0.05
"""Share of its size that the axis of utility spans at least."""


@dataclass(frozen=True)
class Axis:
    """A setting that varies: its column in the table, what it is called, and its values in order."""

    column: str
    title: str
    values: tuple[str, ...]


def small_multiples(rows: pd.DataFrame, axes: Sequence[Axis], measure: Measure) -> list[Chart]:
    """``measure`` against the setting with the most values, one chart for every choice of the others.

    Points are runs, the line goes through the medians over repetitions.
    """
    rows = rows[rows[measure.column].notna()]
    if rows.empty or not axes:
        return []
    along = max(axes, key=lambda axis: len(axis.values))
    others = [axis for axis in axes if axis is not along]
    highest = 1.0 if measure is SHARE else float(rows[measure.column].max())
    charts = []
    for values in itertools.product(*(axis.values for axis in others)):
        chosen = {axis.column: value for axis, value in zip(others, values, strict=True)}
        panel = rows[(rows[list(chosen)] == pd.Series(chosen, dtype="object")).all(axis=1)]
        if len(panel):
            where = ", ".join(f"{axis.title} = {chosen[axis.column]}" for axis in others)
            told = f"{measure.name} by {along.title}. {where}. {_in_words(panel, along, measure)}"
            spec = _panel(along, axes, measure, chosen, highest, rows["series"].nunique() > 1)
            charts.append(Chart(where or f"{measure.name} by {along.title}", told, spec))
    return charts


def _panel(
    along: Axis, axes: Sequence[Axis], measure: Measure, chosen: dict[str, str], highest: float, several: bool
) -> Spec:
    """The runs with the ``chosen`` values, up to the level that all panels share."""
    x = field(along.column, along.title, **_in_order(along))
    y = field(measure.column, measure.title, scale={"domain": [0, highest]})
    if measure is SHARE:
        y["axis"] = {"format": "%"}
    wanted = [f"isValid(datum.{measure.column})"]
    wanted += [f"datum.{column} === {json.dumps(value)}" for column, value in chosen.items()]
    medians = {
        "aggregate": [{"op": "median", "field": measure.column, "as": "middle"}],
        "groupby": [along.column, "series"],
    }
    return layout(
        {
            "data": {"name": ROWS},
            "transform": [{"filter": " && ".join(wanted)}],
            "layer": [
                {
                    "mark": {"type": "line", "aria": False},
                    "transform": [medians],
                    "encoding": {"x": x, "y": field("middle", measure.title), "color": COLOUR},
                },
                {"mark": _point(60), "encoding": {"x": x, "y": y, "color": COLOUR, "tooltip": _told(axes)}},
            ],
        },
        height=200,
        several=several,
    )


def heat_maps(rows: pd.DataFrame, axes: Sequence[Axis], measure: Measure = LEVEL) -> list[Chart]:
    """``measure`` over every two of the settings, its median over all that differs beside them, by attack."""
    rows = rows[rows[measure.column].notna()]
    pairs = itertools.product(itertools.combinations(axes, 2), rows.groupby("series", sort=False))
    charts = []
    for (first, second), (series, of_series) in itertools.islice(pairs, MOST_HEAT_MAPS):
        across, down = (first, second) if len(first.values) >= len(second.values) else (second, first)
        cells = of_series.groupby([across.column, down.column], sort=False)[measure.column].agg(["median", "count"])
        values = [
            {"across": key[0], "down": key[1], "middle": float(median), "runs": int(count)}
            for key, median, count in cells.itertuples()
        ]
        name = f"{measure.name} by {across.title} and {down.title}"
        told = "; ".join(f"{cell['across']}, {cell['down']}: {cell['middle']:.2f}" for cell in values)
        titled = name if rows["series"].nunique() == 1 else f"{name}, {series}"
        charts.append(Chart(titled, f"{titled}. {told}.", _heat_map(across, down, measure, values)))
    return charts


def _heat_map(across: Axis, down: Axis, measure: Measure, values: list[dict[str, Any]]) -> Spec:
    x = field("across", across.title, **_in_order(across))
    y = field("down", down.title, type="ordinal", sort=list(down.values))
    colour = field(
        "middle", measure.title, scale={"scheme": {"name": "oranges", "extent": [0, 0.65]}, "domainMin": 0}, legend=None
    )
    told = [
        {"field": "across", "title": across.title},
        {"field": "down", "title": down.title},
        {"field": "middle", "title": measure.title, "format": measure.form},
        {"field": "runs"},
    ]
    return layout(
        {
            "data": {"values": values},
            "encoding": {"x": x, "y": y, "tooltip": told},
            "layer": [
                {"mark": {"type": "rect", "aria": False}, "encoding": {"color": colour}},
                {
                    "mark": {"type": "text", "fontSize": 13, "color": "black", "aria": False},
                    "encoding": {"text": {"field": "middle", "format": measure.form}},
                },
            ],
        },
        height=max(90, 46 * len(down.values)),
    )


def against_utility(rows: pd.DataFrame, axes: Sequence[Axis], utility: str, more_is_better: bool) -> Chart | None:
    """Leakage against utility, with the Pareto front: the runs that no other beats in both; None if not measured."""
    rows = rows[rows["utility"].notna() & rows[LEVEL.column].notna()]
    if rows.empty:
        return None
    front = pareto_front(rows, more_is_better)
    coloured = next((axis for axis in axes if 1 < len(axis.values) <= len(COLOURS)), None)
    colour = (
        COLOUR
        if coloured is None or rows["series"].nunique() > 1
        else COLOUR | {"field": coloured.column, "legend": {"title": coloured.title}}
    )
    x = field(
        "utility",
        f"{utility}, {'more' if more_is_better else 'less'} is better",
        scale={"zero": False, "domain": _span(rows["utility"])},
        axis={"labelOverlap": True, "tickCount": 5},
    )
    y = field(LEVEL.column, f"{LEVEL.title}, less is better")
    line = {
        "type": "line",
        "interpolate": "step-before" if more_is_better else "step-after",
        "strokeDash": [4, 3],
        "color": {"expr": "ink"},
        "aria": False,
    }
    spec = layout(
        {
            "data": {"name": ROWS},
            "transform": [{"filter": f"isValid(datum.utility) && isValid(datum.{LEVEL.column})"}],
            "layer": [
                {
                    "data": {"values": front[["utility", LEVEL.column]].to_dict("records")},
                    "mark": line,
                    "encoding": {"x": x, "y": y},
                },
                {
                    "mark": _point(90) | {"cursor": "pointer"},
                    "encoding": {"x": x, "y": y, "color": colour, "tooltip": _told(axes)},
                },
            ],
        },
        height=320,
    )
    told = "; ".join(
        f"{row['run']}: {row['utility']:.4g}, {row[LEVEL.column]:.1f} dB" for row in front.to_dict("records")
    )
    return Chart("Leakage against utility", f"Leakage against {utility}. On the Pareto front: {told}.", spec)


def _span(values: "pd.Series[float]") -> list[float]:
    """From the least to the most, and at least LEAST_SPAN of their size: differences that are nothing look like it."""
    low, high = float(values.min()), float(values.max())
    missing = max(0.0, LEAST_SPAN * max(abs(low), abs(high)) - (high - low))
    return [low - missing / 2, high + missing / 2]


def pareto_front(rows: pd.DataFrame, more_is_better: bool) -> pd.DataFrame:
    """The rows that no other beats: none has as good a ``utility`` and a smaller ``median_psnr``; by utility.

    >>> rows = pd.DataFrame({"utility": [1.0, 2.0, 3.0], "median_psnr": [50.0, 60.0, 20.0]})
    >>> pareto_front(rows, more_is_better=False).index.tolist(), pareto_front(rows, more_is_better=True).index.tolist()
    ([0, 2], [2])
    """
    ordered = rows.sort_values(["utility", LEVEL.column], ascending=[not more_is_better, True])
    least_so_far = ordered[LEVEL.column].cummin()
    front = ordered[(ordered[LEVEL.column] == least_so_far) & ~least_so_far.duplicated()]
    return front.sort_values("utility")


def _in_order(axis: Axis) -> Spec:
    """The values of a setting in their order, side by side; long ones aslant."""
    aslant = len(axis.values) > 2 and max(map(len, axis.values)) > 8
    return {
        "type": "ordinal",
        "sort": list(axis.values),
        "axis": {"labelAngle": -30 if aslant else 0, "labelLimit": 150},
    }


def _point(size: int) -> Spec:
    return {"type": "point", "filled": True, "size": size, "opacity": 0.85, "aria": False}


def _told(axes: Sequence[Axis]) -> list[Spec]:
    """What a run says when it is pointed at."""
    return [
        {"field": "run"},
        {"field": "series", "title": "attack"},
        *({"field": axis.column, "title": axis.title} for axis in axes),
        *({"field": measure.column, "title": measure.title, "format": measure.form} for measure in MEASURES),
        {"field": "images"},
        {"field": "utility", "format": ".4g"},
        {"field": "seed"},
    ]


def _in_words(rows: pd.DataFrame, axis: Axis, measure: Measure) -> str:
    medians = rows.groupby(axis.column)[measure.column].median()
    return "; ".join(f"{value}: {medians[value]:.2f}" for value in axis.values if value in medians.index) + "."
