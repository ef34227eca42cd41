"""Write figures and tables of results once more from their rows: ``python -m experiments.bench FILE.json …``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from experiments.bench import bench, classification, defences, inversion, labels, many_clients, priors, timesteps, users
from experiments.commands import one_line_errors
from fl_sim.config import SettingsError

BENCHMARKS = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (bench, classification, defences, inversion, labels, many_clients, priors, timesteps, users)
}


def rewrite(path: Path) -> None:
    """Write FILE.json and FILE.md of the benchmark that the file names.

    Raises:
        SettingsError: if the file holds no results of a benchmark; it stays as it is.
        OSError: if it cannot be read or written.
    """
    try:
        BENCHMARKS[json.loads(path.read_bytes())["benchmark"]].rewrite(path)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise SettingsError(f"{path}: no results of a benchmark; allowed: a NAME.json that one wrote") from error


def main(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.json…", help="Results that a benchmark wrote.")],
) -> None:
    """Write figures and tables once more from the rows of results, without measuring."""
    with one_line_errors():
        for path in files:
            rewrite(path)


if __name__ == "__main__":
    typer.run(main)
