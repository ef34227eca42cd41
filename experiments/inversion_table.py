"""The table of what model inversion found, one row for every image, and its figures in short."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.leakage import OK

BLIND = "random public images"
"""Rows of this method are no attack: public images drawn blindly, beside which an attack has to show something."""

FIGURES = ("evaluator_top1", "evaluator_top5", "knn_distance", "psnr", "target_probability")
"""The figures of an image; missing where there is none."""


@dataclass(frozen=True)
class InversionSummary:
    """What one method found in the global model of one round.

    Attributes:
        images, finished: how many images were to be found, and were.
        top1, top5: shares of those found whose class is the evaluator's first, or among its first five.
        chance_top1, chance_top5: the same for images that have nothing to do with their class.
        knn, psnr: medians; ``psnr`` in dB.
        status: why images are missing, if they are.
    """

    round: int
    method: str
    images: int
    finished: int
    top1: float
    top5: float
    chance_top1: float
    chance_top5: float
    knn: float
    psnr: float
    target_probability: float
    evaluator_accuracy: float
    evaluations: int
    seconds: float
    status: str

    def line(self) -> str:
        """The figures as plain text in one line."""
        where = f"round {self.round} {self.method}"
        if not self.finished:
            return f"{where}: {self.status}"
        return (
            f"{where}: evaluator top-1 {self.top1:.0%} (chance {self.chance_top1:.0%}), median PSNR {self.psnr:.1f} dB "
            f"to the nearest private image of the class"
        )


def summarise_inversions(rows: pd.DataFrame) -> list[InversionSummary]:
    """The figures of every round and method, in the table's order."""
    return [_summary(of_one) for _, of_one in rows.groupby(["round", "method"], sort=False)]


def read_inversions(path: Path) -> pd.DataFrame:
    """The table in a file; without rows if there is no file."""
    columns = ["round", "method", "class", "image", "status"]
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=columns)


def chance(num_classes: int) -> Mapping[str, float]:
    """Columns that say how often a guess is right, among so many classes."""
    return {"chance_top1": 1 / num_classes, "chance_top5": min(1.0, 5 / num_classes)}


def to_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as a table in which every figure is a number, NaN where it is missing."""
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys((*FIGURES, "seconds", "evaluator_accuracy"), float))


def _summary(rows: pd.DataFrame) -> InversionSummary:
    first, found = rows.iloc[0], rows[rows["status"] == OK]
    failed = rows[rows["status"] != OK]
    return InversionSummary(
        round=int(first["round"]),
        method=first["method"],
        images=len(rows),
        finished=len(found),
        top1=found["evaluator_top1"].mean(),
        top5=found["evaluator_top5"].mean(),
        chance_top1=first["chance_top1"],
        chance_top5=first["chance_top5"],
        knn=found["knn_distance"].median(),
        psnr=found["psnr"].median(),
        target_probability=found["target_probability"].median(),
        evaluator_accuracy=first["evaluator_accuracy"],
        evaluations=int(first["evaluations"]),
        seconds=first["seconds"] if len(found) else math.nan,
        status=failed["status"].iloc[0] if len(failed) else OK,
    )
