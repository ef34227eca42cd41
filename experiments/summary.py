"""Summarises a leakage table in a few figures per attack.

A blank original has no content: a flat picture of its mean colour already looks like it, so a good reconstruction of
it proves nothing. Blank originals are counted, and left out of every other figure.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from attacks.observation import ThreatModel
from experiments.leakage import OK, USER
from fl_sim.network import dropout_of

RECOGNISABLE_DB = 30.0
"""PSNR in dB from which a reconstruction shows what the original shows; a blank original's mean colour reaches it."""

NO_EVIDENCE = "no evidence"
"""Shown in place of figures if every original is blank."""


@dataclass(frozen=True)
class Summary:
    """The figures of one attack over originals with content; ``blank`` counts the others.

    PSNRs, SSIM, evaluations and seconds are over the ``finished`` images, NaN if there is none. ``recognisable``,
    ``timesteps_recovered`` and ``labels_recovered`` are counts out of ``images``, which include those on which the
    attack failed; the last two are None where the server knew them. ``of_users``: an image stands for all that a client
    trained on, and is compared with their mean.
    """

    attack: str
    images: int
    blank: int
    finished: int
    median_psnr: float
    best_psnr: float
    recognisable: int
    timesteps_recovered: int | None
    labels_recovered: int | None
    median_ssim: float
    median_evaluations: float
    median_seconds: float
    of_users: bool = False

    @property
    def share_recognisable(self) -> float:
        """Fraction of the images that reached RECOGNISABLE_DB, NaN if there is none with content."""
        return self.recognisable / self.images if self.images else math.nan


def is_blank(flat_psnr: float) -> bool:
    """Whether an original with this ``flat_psnr`` has no content; NaN, in tables of earlier runs, counts as content."""
    return flat_psnr >= RECOGNISABLE_DB


def with_content(leakage: pd.DataFrame) -> pd.DataFrame:
    """The rows of a leakage table whose originals have content."""
    return leakage[~(leakage["flat_psnr"] >= RECOGNISABLE_DB)]


def blank_originals(leakage: pd.DataFrame) -> pd.DataFrame:
    """Round, client (-1: a sum of clients) and image of every original without content, each once."""
    blank = leakage["flat_psnr"] >= RECOGNISABLE_DB
    return leakage.loc[blank, ["round", "client", "image"]].drop_duplicates(ignore_index=True)


def describe_blank(count: int) -> str:
    """A sentence on ``count`` originals without content, empty if there is none."""
    if count == 0:
        return ""
    return (
        f"{count} {'original' if count == 1 else 'originals'} without content left out: "
        f"a flat picture of its mean colour already reaches {RECOGNISABLE_DB:.0f} dB."
    )


def dropout_caveat(model: Mapping[str, Any]) -> str:
    """A sentence on what dropout does to the figures, empty without any; ``model``: config of the clients' model."""
    dropout = dropout_of(model)
    if dropout == 0:
        return ""
    return (
        f"Clients trained with dropout {dropout:g}, whose masks are private. The attacks compute gradients without it: "
        "their matching loss cannot reach zero, and these figures are lower than what the updates really leak. "
        "This is no protection."
    )


def summarise(leakage: pd.DataFrame) -> list[Summary]:
    """One summary per attack in a leakage table, by name."""
    return [_summarise(str(attack), rows) for attack, rows in leakage.groupby("attack", sort=True)]


def _summarise(attack: str, attacked: pd.DataFrame) -> Summary:
    rows, given = with_content(attacked), bool((attacked["threat"] == ThreatModel.KNOWN).all())
    return Summary(
        attack=attack,
        images=len(rows),
        blank=len(attacked) - len(rows),
        finished=int((rows["status"] == OK).sum()),
        median_psnr=float(rows["psnr"].median()),
        best_psnr=float(rows["psnr"].max()),
        recognisable=int((rows["psnr"] >= RECOGNISABLE_DB).sum()),
        timesteps_recovered=None if given else int((rows["timestep"] == rows["timestep_recovered"]).sum()),
        labels_recovered=None if given else int((rows["label"] == rows["label_recovered"]).sum()),
        median_ssim=float(rows["ssim"].median()),
        median_evaluations=float(rows["evaluations"].astype("float64").median()),
        median_seconds=float(rows["seconds"].median()),
        of_users=bool((attacked["image"] == USER).all()),
    )
