"""The benchmark of the attacks: every attack on the same victims, what it reconstructs, and how fast.

A row is one attack on one victim, a summary one attack in one case.
"""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from experiments.bench.attack_tables import describe_case, tables
from experiments.bench.benchmark import Benchmark, Row
from experiments.bench.plan import Options, make_plan
from experiments.bench.summary import summarise
from experiments.leakage import OK


def bench_attacks(options: Options, out: Path, jobs: int, console: Console) -> None:
    """Measure what ``options`` ask for, ``jobs`` attacks side by side; ``out`` gets attacks.json and attacks.md.

    Raises:
        SettingsError, AttackError: if the options ask for what is not there, or ``out`` holds something else.
    """
    BENCHMARK.run(make_plan(options), asdict(options), out, jobs, console)


def announce(row: Row) -> str:
    """Case, attack, victim: PSNR and seconds, or why it failed."""
    (summary,) = summarise([row])
    result = f"{summary.median_psnr:.1f} dB in {summary.seconds:.1f} s" if row["status"] == OK else row["status"]
    return f"{summary.case.suite}: {describe_case(summary.case)}, {summary.attack}, victim {row['victim']}: {result}"


BENCHMARK = Benchmark(
    "attacks",
    "attacks",
    announce,
    figures=lambda rows: [asdict(summary) for summary in summarise(rows)],
    tables=tables,
)
