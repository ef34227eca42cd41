"""The report's charts, as Vega-Lite that answers when pointed at.

The page holds the library that draws them. A chart has no colours of its own for text and lines: the page sets the
signals ``ink`` and ``faint`` for a light or a dark background.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.summary import RECOGNISABLE_DB

Spec = dict[str, Any]

COLOURS = ("#2f7fbf", "#d4601f", "#2a9365", "#9b66d0", "#cf4c78", "#7d838c", "#a78a1f", "#1f98ab")
"""Of several series; each is 3:1 or more against a white and against a dark background."""

HIGHEST_DB = 120.0
"""Where equal images, whose PSNR is infinite, are drawn."""

ROWS = "rows"
"""The data that the page hands to every chart that brings none of its own."""

MOST_TOLD = 12
"""Medians that the text for screen readers tells one by one."""

CONFIG: Spec = {
    "background": None,
    "font": "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": {"expr": "ink"},
        "titleColor": {"expr": "ink"},
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "domainColor": {"expr": "faint"},
        "tickColor": {"expr": "faint"},
        "gridColor": {"expr": "faint"},
        "gridOpacity": 0.5,
    },
    "axisX": {"grid": False},
    "legend": {
        "orient": "top",
        "columns": 2,
        "labelColor": {"expr": "ink"},
        "titleColor": {"expr": "ink"},
        "labelFontSize": 12,
        "labelLimit": 220,
        "symbolOpacity": 1,
        "title": None,
    },
    "range": {"category": list(COLOURS)},
}

PSNR_AXIS = "PSNR of the reconstruction (dB)"


@dataclass(frozen=True)
class Reference:
    """A level in dB that a reader compares with."""

    level: float
    label: str
    right: bool = True


@dataclass(frozen=True)
class Chart:
    """A chart to draw: its name, what it shows as text, and its specification in Vega-Lite."""

    title: str
    text: str
    spec: Spec


def leakage_charts(points: pd.DataFrame, references: Sequence[Reference]) -> list[Chart]:
    """PSNR of every image by whatever differs among ``points``: round, client, timestep, training loss, defence.

    ``points`` has a row for every image, with the columns ``psnr`` in dB, ``series``, and those that it is drawn
    against; values may be missing.
    """
    points = points[points["psnr"].notna()]
    if points.empty:
        return []
    charts = [_over_numbers, _over_names, _over_numbers, _over_numbers, _over_names]
    titles = {
        "round": "round",
        "client": "client",
        "timestep": "timestep t of the private training step",
        "train_loss": "mean training loss of the round",
        "defence": "defence",
    }
    several = [
        (draw, column) for draw, column in zip(charts, titles, strict=True) if points[column].dropna().nunique() > 1
    ]
    return [
        draw(points[points[column].notna()], column, titles[column], references)
        for draw, column in several or [(_over_numbers, "round")]
    ]


def curve(rounds: pd.DataFrame, column: str, title: str, text: str) -> Chart:
    """A figure of the model after every round that measured it, from the table of rounds."""
    measured = rounds.loc[np.isfinite(rounds[column]), ["round", column]]
    spec = layout(
        {
            "data": {"values": measured.to_dict("records")},
            "mark": {"type": "line", "point": {"size": 60}, "aria": False},
            "encoding": {
                "x": field("round", "round", axis=_whole(measured["round"]), scale={"zero": False}),
                "y": field(column, title),
                "tooltip": [{"field": "round"}, {"field": column, "title": title, "format": ".4g"}],
            },
        }
    )
    return Chart(title, text, spec)


def _over_numbers(points: pd.DataFrame, column: str, title: str, references: Sequence[Reference]) -> Chart:
    """Every image, the line of the medians and the band of the quartiles; no line over timesteps, as few repeat."""
    x = field(column, title, scale={"zero": False})
    if column == "round":
        x["axis"] = _whole(points[column])
    middle = [] if column == "timestep" else _line_and_band(column, x)
    return _psnr_chart(points, column, [*middle, _images(column, x)], references)


def _over_names(points: pd.DataFrame, column: str, title: str, references: Sequence[Reference]) -> Chart:
    """Every image, spread over the width of its place, always in the same way; and a line at each median."""
    names = sorted(points[column].unique().tolist())
    place = f"indexof({json.dumps(names)}, datum.{column})"
    labels = json.dumps(["sum" if column == "client" and name < 0 else str(name) for name in names])
    axis = {"values": _thinned(range(len(names))), "labelExpr": f"{labels}[datum.value]", "labelLimit": 130}
    x = field("place", title, scale={"domain": [-0.5, len(names) - 0.5]}, axis=axis)
    images = _images(column, x)
    images["transform"] = [{"calculate": f"{place} + 0.6 * ((datum.index * 0.618) % 1) - 0.3", "as": "place"}]
    medians = {
        "mark": {"type": "rule", "strokeWidth": 3, "aria": False},
        "transform": [
            *_quartiles(column),
            {"calculate": f"{place} - 0.4", "as": "place"},
            {"calculate": f"{place} + 0.4", "as": "end"},
        ],
        "encoding": {
            "x": x,
            "x2": {"field": "end"},
            "y": field("median", PSNR_AXIS),
            "color": COLOUR,
            "tooltip": _quartiles_told(column),
        },
    }
    return _psnr_chart(points, column, [medians, images], references)


def _psnr_chart(points: pd.DataFrame, column: str, layers: Sequence[Spec], references: Sequence[Reference]) -> Chart:
    name = f"PSNR by {'training loss' if column == 'train_loss' else column}"
    spec = layout(
        {
            "data": {"name": ROWS},
            "transform": [{"filter": f"isValid(datum.{column})"}],
            "layer": [*map(_line, references), *layers, *map(_label, references)],
        },
        several=points["series"].nunique() > 1,
    )
    return Chart(name, f"{name}. {_told(points, column)}", spec)


def _whole(numbers: pd.Series) -> Spec:
    """An axis of whole numbers."""
    return {"format": "d", "values": _thinned(sorted(set(map(int, numbers))))}


def _thinned(values: Sequence[int], most: int = 12) -> list[int]:
    """At most about so many of the values, evenly."""
    return list(values[:: math.ceil(len(values) / most)])


def layout(spec: Spec, height: int = 260, several: bool = True) -> Spec:
    """A chart as wide as its place on the page, with the signals that the page sets; a legend of ``several`` series."""
    config = CONFIG if several else CONFIG | {"legend": {"disable": True}}
    signals = [{"name": "ink", "value": "#222222"}, {"name": "faint", "value": "#b9b9b9"}]
    return {"width": "container", "height": height, "params": signals, "config": config} | spec


def field(column: str, title: str, **options: Any) -> Spec:
    """An axis: the column that it shows, its title, and whatever differs from a quantity."""
    return {"field": column, "title": title, "type": "quantitative"} | options


COLOUR: Spec = {"field": "series", "type": "nominal", "sort": None}
"""One colour a series."""


def _images(column: str, x: Spec) -> Spec:
    """Every image, one point; the number of its row tells the page which pictures to show."""
    return {
        "mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.75, "cursor": "pointer", "aria": False},
        "encoding": {
            "x": x,
            "y": field("psnr", PSNR_AXIS),
            "color": COLOUR,
            "tooltip": [
                {"field": "series", "title": "attack"},
                *({"field": name} for name in dict.fromkeys(("round", "client", column))),
                {"field": "psnr", "title": "PSNR (dB)", "format": ".1f"},
            ],
        },
    }


def _line_and_band(column: str, x: Spec) -> list[Spec]:
    """The line of the medians and the band between the quartiles."""
    quartiles = _quartiles(column)
    median = field("median", PSNR_AXIS)
    band = {"x": x, "y": field("lower", PSNR_AXIS), "y2": {"field": "upper"}, "color": COLOUR}
    line = {"x": x, "y": median, "color": COLOUR, "tooltip": _quartiles_told(column)}
    return [
        {"mark": {"type": "area", "opacity": 0.15, "aria": False}, "transform": quartiles, "encoding": band},
        {
            "mark": {"type": "line", "point": {"size": 70}, "aria": False},
            "transform": quartiles,
            "encoding": line,
        },
    ]


def _quartiles(column: str) -> list[Spec]:
    of_psnr = {"lower": "q1", "median": "median", "upper": "q3"}
    told = [{"op": operation, "field": "psnr", "as": name} for name, operation in of_psnr.items()]
    return [{"aggregate": [*told, {"op": "count", "as": "images"}], "groupby": [column, "series"]}]


def _quartiles_told(column: str) -> list[Spec]:
    figures = [
        {"field": name, "title": f"{name}{'' if name == 'median' else ' quartile'} (dB)", "format": ".1f"}
        for name in ("lower", "median", "upper")
    ]
    return [{"field": "series", "title": "attack"}, {"field": column}, *figures, {"field": "images"}]


def _line(reference: Reference) -> Spec:
    """A dashed line over the whole width."""
    return {
        "data": {"values": [{"level": reference.level}]},
        "mark": {"type": "rule", "strokeDash": [4, 3], "color": {"expr": "ink"}, "opacity": 0.6, "aria": False},
        "encoding": {"y": {"field": "level", "type": "quantitative"}},
    }


def _label(reference: Reference) -> Spec:
    """The name of a line, above it at the right, or below it at the left."""
    right = reference.right
    text = {"type": "text", "align": "right" if right else "left", "dy": -6 if right else 8, "fontSize": 11}
    return {
        "data": {"values": [{"level": reference.level, "label": reference.label}]},
        "mark": text | {"color": {"expr": "ink"}, "aria": False},
        "encoding": {
            "y": {"field": "level", "type": "quantitative"},
            "x": {"value": {"expr": "width"}} if right else {"value": 0},
            "text": {"field": "label"},
        },
    }


def _told(points: pd.DataFrame, column: str) -> str:
    """The chart in words: the medians of each series, or between what they lie."""
    sentences = []
    for series, rows in points.groupby("series", sort=False):
        medians = rows.groupby(column, sort=True)["psnr"].median()
        if column == "timestep" or len(medians) > MOST_TOLD:
            told = f"{len(rows)} images between {rows['psnr'].min():.1f} and {rows['psnr'].max():.1f} dB"
        else:
            told = "medians in dB: " + ", ".join(f"{_short(value)}: {median:.1f}" for value, median in medians.items())
        sentences.append(f"{series}: {told}.")
    return " ".join(sentences)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def drawable(psnr: pd.Series) -> pd.Series:
    """PSNR in dB as it is drawn: an infinite one at HIGHEST_DB."""
    return psnr.clip(upper=HIGHEST_DB)


def recognisable() -> Reference:
    """From where a picture shows what the original shows."""
    return Reference(RECOGNISABLE_DB, f"{RECOGNISABLE_DB:.0f} dB: recognisable")
