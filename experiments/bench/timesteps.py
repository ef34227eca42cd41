"""The benchmark of timestep recovery: how often it is exact, unknown or wrong, and by what margin."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from attacks.inversion.problem import InversionProblem
from attacks.timesteps.recovery import RecoveredTimesteps, recover_timesteps
from experiments.bench.attack_tables import describe_case
from experiments.bench.benchmark import Benchmark, Measurement, Plan, Row
from experiments.bench.cases import Case
from experiments.bench.tables import Table
from experiments.bench.victims import make_victim
from experiments.checkpoint import BUNDLED
from fl_sim.network import LocalOptimizer

VERDICTS = ("exact", "distinct", "unknown", "wrong")
"""All timesteps recovered, with those drawn twice; all, but not which of them was drawn twice; none; a wrong one."""


@dataclass(frozen=True)
class TimestepMeasurement(Measurement):
    """The first so many ``victims`` of a case."""

    case: Case
    victims: int
    seed: int

    def subject(self) -> Row:
        """Case, victims and seed."""
        return {"case": self.case.model_dump(mode="json"), "victims": self.victims, "seed": self.seed}

    def measure(self) -> Row:
        """The verdict on every victim, and the margin of its recovery in standard deviations."""
        verdicts, margins = [], []
        for index in range(self.victims):
            victim = make_victim(self.case, BUNDLED if self.case.model == "trained" else None, self.seed, index)
            recovered = recover_timesteps(InversionProblem(victim.observation, "cpu"))
            verdicts.append(judge(victim.timesteps.tolist(), recovered))
            margins.append(recovered.margin)
        return count(verdicts, margins)


def bench_timesteps(victims: int, seed: int, jobs: int, out: Path, console: Console) -> None:
    """Measure every case on as many ``victims``; ``out`` gets timesteps.json and timesteps.md.

    Raises:
        SettingsError: if ``out`` holds something else.
    """
    plan = Plan([TimestepMeasurement(case, victims, seed) for case in cases()])
    BENCHMARK.run(plan, {"victims": victims, "seed": seed}, out, jobs, console)


def cases() -> Iterator[Case]:
    """Untrained and trained: batches, local steps, Adam, signs, noise, sparsification."""
    for model in ("untrained", "trained"):
        usual: dict[str, Any] = {"suite": "timesteps", "model": model, "timesteps": (0, 999)}
        for batch_size in (1, 2, 4, 8, 16):
            yield Case(**usual, batch_size=batch_size)
        for steps, lr, momentum in product((2, 4), (1e-2, 1e-3), (0.0, 0.9)):
            yield Case(**usual, local_steps=steps, optimizer=LocalOptimizer(lr=lr, momentum=momentum))
        for lr in (1e-2, 1e-3, 1e-4):
            yield Case(**usual, optimizer=LocalOptimizer(name="adam", lr=lr))
        yield Case(**usual, defence="signs")
        for batch_size, strength, known in product((1, 4), (0.1, 1.0), (True, False)):
            yield Case(**usual, batch_size=batch_size, defence="noise", strength=strength, defence_known=known)
        yield Case(**usual, defence="top-k", strength=0.1)


def judge(truth: list[int], recovered: RecoveredTimesteps) -> str:
    """One of VERDICTS, for one victim."""
    if recovered.known:
        return "exact" if recovered.timesteps.tolist() == sorted(truth) else "wrong"
    if len(recovered.distinct):
        return "distinct" if recovered.distinct.tolist() == sorted(set(truth)) else "wrong"
    return "unknown"


def count(verdicts: Sequence[str], margins: Sequence[float]) -> Row:
    """How many verdicts of each kind.

    Margins in standard deviations, of the victims of which anything was recovered and of the others; None: no such.
    """
    pairs = list(zip(verdicts, margins, strict=True))
    recovered = [margin for verdict, margin in pairs if verdict != "unknown"]
    unknown = [margin for verdict, margin in pairs if verdict == "unknown"]
    return {
        **{name: verdicts.count(name) for name in VERDICTS},
        "least_margin_recovered": min(recovered, default=None),
        "median_margin_recovered": statistics.median(recovered) if recovered else None,
        "largest_margin_unknown": max(unknown, default=None),
    }


_HEADINGS = ("case", "n", "exact", "twice?", "unknown", "wrong", "least margin", "median", "unknown below", "revision")


def _tables(rows: Sequence[Row]) -> list[Table]:
    return [Table("timesteps", _HEADINGS, [_table_row(row) for row in rows])]


def _table_row(row: Row) -> tuple[str, ...]:
    counts = [str(row[name]) for name in ("victims", *VERDICTS)]
    margins = [row[name] for name in ("least_margin_recovered", "median_margin_recovered", "largest_margin_unknown")]
    shown = ["-" if margin is None else f"{margin:.1f}" for margin in margins]
    return (describe_case(Case(**row["case"])), *counts, *shown, row["revision"])


def _announce(row: Row) -> str:
    return f"{describe_case(Case(**row['case']))}: {', '.join(f'{row[name]} {name}' for name in VERDICTS)}"


def _figures(rows: Sequence[Row]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in VERDICTS}


BENCHMARK = Benchmark("timesteps", "cases", _announce, _figures, _tables)
