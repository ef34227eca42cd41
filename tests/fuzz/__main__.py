"""``python -m tests.fuzz``: the campaign; it prints its figures as JSON and ends with 1 if there was any fault."""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer

from tests.fuzz.attempt import FAULTS
from tests.fuzz.campaign import run_campaign
from tests.fuzz.kinds import KINDS


def main(
    minutes: Annotated[float, typer.Option(help="How long.")] = 60.0,
    kind: Annotated[list[str], typer.Option(help=f"One of: {', '.join(KINDS)}; may be repeated.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Another one makes other inputs.")] = 0,
    corpus: Annotated[Path, typer.Option(help="Where failing inputs are kept.")] = Path("fuzz-corpus"),
) -> None:
    """Read bad input of every kind for so long, and report what came of it."""
    for name in kind:
        if name not in KINDS:
            raise typer.BadParameter(f"{name}: allowed: {', '.join(KINDS)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    figures = run_campaign(kind or list(KINDS), minutes, seed, corpus, lambda line: print(line, file=sys.stderr))
    print(json.dumps({"minutes": minutes, "seed": seed, "kinds": figures}, indent=2))
    if any(counted.get(fault) for counted in figures.values() for fault in FAULTS):
        raise typer.Exit(1)


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(main)
app()
