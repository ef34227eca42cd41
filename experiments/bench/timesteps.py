"""How often the timesteps are read off an update exactly, not told, or told wrongly, and by what margin."""

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from attacks.inversion.problem import InversionProblem
from attacks.timesteps.recovery import RecoveredTimesteps, recover_timesteps
from experiments.bench.cases import Case
from experiments.bench.measuring import device_name, write_results
from experiments.bench.pages import Table, markdown, rich_table, where
from experiments.bench.processes import side_by_side
from experiments.bench.victims import make_victim
from experiments.checkpoint import BUNDLED
from experiments.run_directory import environment, make_empty_folder
from fl_sim.diffusion import LocalOptimizer


@dataclass(frozen=True)
class Verdicts:
    """What became of a case's victims.

    ``exact``: all timesteps told, with those drawn twice; ``distinct``: told, but not which of them was drawn twice;
    ``unknown``: nothing told; ``wrong``: something told that was not so. Margins in standard deviations, of the victims
    that were told anything and of those told nothing; None where there are none.
    """

    case: dict[str, Any]
    victims: int
    exact: int
    distinct: int
    unknown: int
    wrong: int
    least_margin_told: float | None
    median_margin_told: float | None
    largest_margin_unknown: float | None


@dataclass(frozen=True)
class _Job:
    case: Case
    victims: int
    seed: int


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
        for batch_size, strength, told in product((1, 4), (0.1, 1.0), (True, False)):
            yield Case(**usual, batch_size=batch_size, defence="noise", strength=strength, told=told)
        yield Case(**usual, defence="top-k", strength=0.1)


def verdict(truth: list[int], recovered: RecoveredTimesteps) -> str:
    """One of the fields of Verdicts, for one victim."""
    if recovered.known:
        return "exact" if recovered.timesteps.tolist() == sorted(truth) else "wrong"
    if len(recovered.distinct):
        return "distinct" if recovered.distinct.tolist() == sorted(set(truth)) else "wrong"
    return "unknown"


def bench_timesteps(victims: int, seed: int, jobs: int, out: Path, console: Console) -> None:
    """Measure every case on as many ``victims``; ``out`` gets timesteps.json and timesteps.md.

    Raises:
        SettingsError: if ``out`` is there and holds something.
    """
    make_empty_folder(out)
    work = [_Job(case, victims, seed) for case in cases()]
    measured = list(track(side_by_side(_measure, work, jobs), "timesteps", len(work), console=console))
    order = [job.case.model_dump(mode="json") for job in work]
    measured.sort(key=lambda verdicts: order.index(verdicts.case))
    about = environment() | {"device": device_name("cpu"), "seed": seed}
    content = {"about": about, "cases": [asdict(verdicts) for verdicts in measured]}
    table = _table(measured)
    write_results(out, "timesteps", content, markdown(table))
    console.print(rich_table(table, console.width))


def _measure(job: _Job) -> Verdicts:
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    told: list[float] = []
    unknown: list[float] = []
    for index in range(job.victims):
        victim = make_victim(job.case, BUNDLED if job.case.model == "trained" else None, job.seed, index)
        recovered = recover_timesteps(InversionProblem(victim.observation, "cpu"))
        found = verdict(victim.timesteps.tolist(), recovered)
        counts[found] += 1
        (unknown if found == "unknown" else told).append(recovered.margin)
    return Verdicts(
        job.case.model_dump(mode="json"),
        job.victims,
        counts["exact"],
        counts["distinct"],
        counts["unknown"],
        counts["wrong"],
        min(told, default=None),
        statistics.median(told) if told else None,
        max(unknown, default=None),
    )


def _table(measured: list[Verdicts]) -> Table:
    headings = ("case", "n", "exact", "twice?", "unknown", "wrong", "least margin", "median", "unknown below")
    rows = []
    for verdicts in measured:
        counts = (verdicts.victims, verdicts.exact, verdicts.distinct, verdicts.unknown, verdicts.wrong)
        margins = (verdicts.least_margin_told, verdicts.median_margin_told, verdicts.largest_margin_unknown)
        rows.append((where(Case(**verdicts.case)), *map(str, counts), *map(_margin, margins)))
    return Table("timesteps", headings, rows, [])


def _margin(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
