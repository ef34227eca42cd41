"""The report's section on model inversion: the figures of every round, and classes in rows."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from attacks.attack import AttackError
from attacks.model_inversion.reconstructions_file import load_reconstructions
from experiments.inversion_judge import Judge
from experiments.inversion_table import BLIND, InversionSummary, summarise_inversions
from experiments.leakage import OK
from experiments.pictures import image_uri
from experiments.run_directory import RunDirectory

EXAMPLES = 3
"""Private images that are shown of every class."""


@dataclass(frozen=True)
class ClassRow:
    """One class: images of it that clients hold, and what was found of it, as URIs; and its rows of the table."""

    name: str
    private: list[str]
    found: list[str]
    figures: list[dict[Hashable, object]]


@dataclass(frozen=True)
class InvertedRound:
    """The global model of one round: the figures of the method and of images drawn blindly, and the classes."""

    number: int
    method: str
    summaries: list[InversionSummary]
    classes: list[ClassRow]


def private_examples(judge: Judge, table: pd.DataFrame) -> dict[int, list[str]]:
    """Some of the clients' images of every class in the table, as URIs.

    Raises:
        SettingsError: if they cannot be read.
    """
    return {number: _uris(judge.examples(number, EXAMPLES)) for number in map(int, table["class"].unique())}


def inverted_rounds(
    directory: RunDirectory, table: pd.DataFrame, private: Mapping[int, list[str]]
) -> list[InvertedRound]:
    """What to show of every round in the table, beside the ``private`` images of a class where there are any."""
    summaries, shown = summarise_inversions(table), []
    for attack in summaries:
        if attack.method != BLIND:
            of_round = [summary for summary in summaries if summary.round == attack.round]
            rows = table[(table["round"] == attack.round) & (table["method"] == attack.method)]
            classes = _classes(directory, attack.round, attack.method, rows, private)
            shown.append(InvertedRound(attack.round, attack.method, of_round, classes))
    return shown


def problems(table: pd.DataFrame) -> list[tuple[str, str]]:
    """What could not be found, and why."""
    return [
        (f"Inversion after round {summary.round} by {summary.method}", summary.status)
        for summary in summarise_inversions(table)
        if summary.status != OK
    ]


def _classes(
    directory: RunDirectory, server_round: int, method: str, rows: pd.DataFrame, private: Mapping[int, list[str]]
) -> list[ClassRow]:
    try:
        found = load_reconstructions(directory.class_reconstructions(server_round, method)).images
    except AttackError:
        return []
    return [
        ClassRow(
            name=of_class["class_name"].iloc[0],
            private=private.get(of_class["class"].iloc[0], []),
            found=_uris(images),
            figures=of_class.to_dict("records"),
        )
        for (_, of_class), images in zip(rows.groupby("class", sort=False), found, strict=True)
    ]


def _uris(images: Tensor) -> list[str]:
    return [image_uri(image) for image in images]
