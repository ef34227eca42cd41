"""``python -m tests.fuzz``: the campaign; it prints its figures and ends with 1 if there was any fault."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer

from tests.fuzz.attempt import HUNG, MEMORY, OUTSIDE, TRACEBACK, UNCLEAR
from tests.fuzz.campaign import run_campaign
from tests.fuzz.kinds import KINDS
from tests.reliability import Row, write_figures

LOST, WRONG = (TRACEBACK, UNCLEAR), (OUTSIDE, MEMORY)
"""The faults after which nobody is told what is wrong, and those that do what an input must not make them do."""


def main(
    minutes: Annotated[float, typer.Option(help="How long.")] = 60.0,
    kind: Annotated[list[str], typer.Option(help=f"One of: {', '.join(KINDS)}; may be repeated.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Another one makes other inputs.")] = 0,
    corpus: Annotated[Path, typer.Option(help="Where failing inputs are kept.")] = Path("fuzz-corpus"),
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    """Read bad input of every kind for so long, and report what came of it."""
    for name in kind:
        if name not in KINDS:
            raise typer.BadParameter(f"{name}: allowed: {', '.join(KINDS)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    figures = run_campaign(kind or list(KINDS), minutes, seed, corpus, lambda line: print(line, file=sys.stderr))
    rows = [
        Row(
            name,
            counted["tried"],
            lost=sum(counted[outcome] for outcome in LOST),
            wrong=sum(counted[outcome] for outcome in WRONG),
            hung=counted[HUNG],
        )
        for name, counted in figures.items()
    ]
    write_figures(rows, out)


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(main)
app()
