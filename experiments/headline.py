"""What the terminal says at the end of a run: its leakage, and a classifier's accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.table import Table

from experiments.summary import (
    NO_EVIDENCE,
    RECOGNISABLE_DB,
    Summary,
    blank_originals,
    describe_blank,
    dropout_caveat,
    summarise,
)
from experiments.utility import ACCURACY


def headline(leakage: pd.DataFrame, model: Mapping[str, Any]) -> list[RenderableType]:
    """What to print: a table with a row per attack, and remarks on how to read it; nothing if nobody attacked.

    ``model`` is the config of the clients' model.
    """
    summaries = summarise(leakage)
    if not summaries:
        return []
    table = Table(box=None, padding=(0, 2), header_style="dim")
    told = [name for name in ("timesteps", "labels") if leakage[name.removesuffix("s")].notna().any()]
    exact = [f"{name} exact" for name in told]
    for heading in ("attack", "images", "median PSNR", f">= {RECOGNISABLE_DB:.0f} dB", *exact):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    for summary in summaries:
        table.add_row(*_cells(summary, told))
    remarks = [describe_blank(len(blank_originals(leakage))), dropout_caveat(model)]
    return [table, *(remark for remark in remarks if remark)]


def accuracy_line(rounds: pd.DataFrame) -> list[str]:
    """A classifier's latest accuracy on held-out images, from the table of rounds; nothing if none was measured."""
    measured = rounds.dropna(subset=[ACCURACY]) if ACCURACY in rounds else rounds.head(0)
    return [
        f"held-out accuracy after round {row['round']}: {100 * row[ACCURACY]:.1f} %"
        for row in measured.tail(1).to_dict("records")
    ]


def _cells(summary: Summary, told: Sequence[str]) -> tuple[str, ...]:
    """The cells of a row; ``told``: which of timesteps and labels clients trained with."""
    if not summary.images:
        return summary.attack, "0", NO_EVIDENCE
    return (
        summary.attack,
        str(summary.images),
        f"{summary.median_psnr:.1f} dB" if summary.finished else "",
        f"{100 * summary.share_recognisable:.0f} %",
        *(_recovered(summary, name) for name in told),
    )


def _recovered(summary: Summary, name: str) -> str:
    """How many of the timesteps or labels were found; nothing where one image stands for many that have their own."""
    found = getattr(summary, f"{name}_recovered")
    if summary.of_users:
        return ""
    return "given" if found is None else f"{found}/{summary.images}"
