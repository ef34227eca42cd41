"""The report's curves, as PNG files in memory."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.summary import RECOGNISABLE_DB

COLOURS = ("#1f5f8b", "#c2571a", "#3b7d4f", "#7a4a9e", "#b03060", "#6b6b6b", "#97802a", "#2a8f9b")
INK, FAINT = "#222222", "#b9b9b9"
HIGHEST_DB = 120.0
"""Where equal images, whose PSNR is infinite, are drawn."""

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def psnr_by_round(leakage: Mapping[str, pd.DataFrame]) -> bytes:
    """For each labelled table: every image's PSNR, their median per round and the band between the quartiles."""
    figure, axes = _axes("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    rounds = pd.concat([rows["round"] for rows in leakage.values()])
    axes.set_xlim(rounds.min() - 0.5, rounds.max() + 0.5)
    for colour, (label, rows) in zip(_colours(leakage), leakage.items(), strict=True):
        finished = _finished(rows)
        by_round = finished.groupby("round")["psnr"]
        middle = by_round.median()
        axes.fill_between(
            middle.index, by_round.quantile(0.25), by_round.quantile(0.75), color=colour, alpha=0.15, lw=0
        )
        axes.plot(middle.index, middle, color=colour, lw=2, marker="o", ms=5, label=label)
        axes.scatter(finished["round"], finished["psnr"], s=14, color=colour, alpha=0.45, lw=0)
    _legend(axes, leakage)
    return _png(figure)


def psnr_by_timestep(leakage: Mapping[str, pd.DataFrame]) -> bytes:
    """For each labelled table: every image's PSNR against the timestep at which the client trained on it."""
    figure, axes = _axes("timestep t of the private training step")
    for colour, (label, rows) in zip(_colours(leakage), leakage.items(), strict=True):
        finished = _finished(rows)
        axes.scatter(finished["timestep"], finished["psnr"], s=26, color=colour, alpha=0.75, lw=0, label=label)
    _legend(axes, leakage)
    return _png(figure)


def accuracy_by_round(rounds: pd.DataFrame) -> bytes:
    """The accuracy on held-out images after every round that measured it, from the table of rounds."""
    figure, axes = _axes("round", "held-out accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    measured = rounds[rounds["heldout_accuracy"].notna()]
    axes.plot(measured["round"], measured["heldout_accuracy"], color=COLOURS[0], lw=2, marker="o", ms=5)
    axes.set_ylim(0, 1)
    return _png(figure)


def _axes(xlabel: str, ylabel: str = "PSNR of the reconstruction (dB)") -> tuple[Figure, Axes]:
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.3), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#ececec", lw=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        return figure, axes


def _colours(leakage: Mapping[str, pd.DataFrame]) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(leakage))]


def _finished(rows: pd.DataFrame) -> pd.DataFrame:
    finished = rows[rows["psnr"].notna()]
    return finished.assign(
        psnr=np.minimum(finished["psnr"], HIGHEST_DB), timestep=finished["timestep"].astype("float64")
    )


def _legend(axes: Axes, leakage: Mapping[str, pd.DataFrame]) -> None:
    axes.axhline(RECOGNISABLE_DB, color=FAINT, lw=1, ls=(0, (4, 3)))
    axes.set_ylim(bottom=0)
    if len(leakage) > 1:
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()
