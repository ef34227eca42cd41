"""The table of docs/reliability.md: how often each fault and each kind of bad input was tried, and what came of it.

Campaigns (tests/faults.py, tests/fuzz, tests/kill_and_resume.py) write their figures with ``write_figures``.
``python -m tests.reliability build/*.json --out docs/reliability.json`` puts the files of several into one, and
prints the table; without files it prints that of docs/reliability.json.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "reliability.json"

FAULTS = ("lost", "wrong", "hung")


@dataclass(frozen=True)
class Row:
    """How many inputs or faults of a kind were tried, and after how many something was lost, wrong or hung."""

    kind: str
    tried: int
    lost: int
    wrong: int
    hung: int


def write_figures(rows: Sequence[Row], out: Path | None) -> None:
    """Print what a campaign found, write it to ``out``, and end with 1 if it found a fault."""
    for row in rows:
        print(json.dumps(asdict(row)))
    if out is not None:
        figures = {"command": _command(), "commit": _commit(), "rows": [asdict(row) for row in rows]}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=2) + "\n")
    raise typer.Exit(int(any(row.lost or row.wrong or row.hung for row in rows)))


def _command() -> str:
    """What was called, without the name of the file that it writes."""
    module = Path(sys.argv[0]).resolve().relative_to(ROOT).with_suffix("")
    parts = [part for part in module.parts if part != "__main__"]
    words = iter(sys.argv[1:])
    given = [word for word in words if word != "--out" or not next(words)]
    return shlex.join(["python", "-m", ".".join(parts), *given])


def _commit() -> str:
    """The commit that was tried; ends with -dirty if files had changed since."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def table(campaigns: Iterable[dict[str, Any]]) -> str:
    """A Markdown table with the sums of all campaigns, a row for each kind."""
    sums: dict[str, list[int]] = {}
    for campaign in campaigns:
        for row in campaign["rows"]:
            before = sums.get(row["kind"], [0, 0, 0, 0])
            sums[row["kind"]] = [number + row[name] for number, name in zip(before, ("tried", *FAULTS), strict=True)]
    lines = [f"| {kind} | {' | '.join(f'{number:,}' for number in numbers)} |" for kind, numbers in sums.items()]
    return "\n".join(["| fault or input | tried | lost | wrong | hung |", "|---|---|---|---|---|", *lines, ""])


def main(
    files: Annotated[list[Path], typer.Argument(help="What campaigns wrote.")] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="A file to put them all into.")] = None,
) -> None:
    """Print the table of docs/reliability.md."""
    campaigns = [json.loads(file.read_text()) for file in files] or json.loads(KEPT.read_text())
    if out is not None:
        out.write_text(json.dumps(campaigns, indent=2) + "\n")
    print(table(campaigns), end="")


if __name__ == "__main__":
    typer.run(main)
