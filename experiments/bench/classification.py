"""The benchmark of the published attacks on classifiers, in the set-up of the papers; labels are private."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from attacks.attack import Reconstruction
from experiments.bench.attack_measurement import WORST_DB, attempt, psnr
from experiments.bench.benchmark import Benchmark, Measurement, Plan, Row
from experiments.bench.cases import Contender
from experiments.bench.classifiers import ClassifierCase, ClassifyingVictim, make_classifying_victim
from experiments.bench.tables import Table
from experiments.leakage import OK
from fl_sim.draws import derive_seed

CONVERGED_DB = 60.0
"""PSNR from which a search counts as converged: the image is there to the last of 8 bits."""

PUBLISHED_BUDGET = {"max_evaluations": 6_000}
"""Of DLG: the authors' code has 300 iterations of L-BFGS, with 20 steps each."""


@dataclass(frozen=True)
class ClassifierMeasurement(Measurement):
    """One contender on victim ``index`` of a case."""

    case: ClassifierCase
    contender: Contender
    index: int
    seed: int

    def subject(self) -> Row:
        """Case, attack, victim and seed."""
        contender = {"attack": self.contender.name, "arguments": self.contender.arguments}
        return {"case": self.case.model_dump(mode="json"), **contender, "victim": self.index, "seed": self.seed}

    def measure(self) -> Row:
        """PSNR of every image and whether the labels are right; a failure counts as the worst PSNR."""
        victim = make_classifying_victim(self.case, self.seed, self.index)
        attack, seed = self.contender.attack, derive_seed(self.seed, "attack", self.contender.attack, self.index)
        return judge(victim, attempt(attack, self.contender.arguments, victim.observation, seed, self.device))


def judge(victim: ClassifyingVictim, found: Reconstruction | str) -> Row:
    """What was found beside the truth; a failure, whose reason is the status, counts as the worst PSNR."""
    if isinstance(found, str):
        return {"status": found, "psnr": [WORST_DB] * len(victim.labels), "labels_exact": False}
    assert found.labels is not None  # of a classifier there are some
    return {
        "status": OK,
        "psnr": psnr(victim.images, found.images).tolist(),
        "labels_exact": sorted(found.labels.tolist()) == sorted(victim.labels.tolist()),
        "matching_loss": found.matching_loss,
        "evaluations": found.evaluations,
        "seconds": found.seconds,
        "peak_memory": found.peak_memory,
    }


def bench_classification(victims: int, quick: bool, seed: int, jobs: int, out: Path, console: Console) -> None:
    """Measure every cell on up to ``victims``; ``out`` gets classification.json and classification.md.

    Raises:
        SettingsError: if ``out`` holds something else.
    """
    measurements = [
        ClassifierMeasurement(case, contender, index, seed)
        for case, contender in cells(quick)
        for index in range(victims)
    ]
    options = {"victims": victims, "quick": quick, "seed": seed}
    BENCHMARK.run(Plan(measurements), options, out, jobs, console)


def cells(quick: bool) -> Iterator[tuple[ClassifierCase, Contender]]:
    """DLG on an untrained LeNet, with sigmoids as published; Inverting Gradients on a ResNet; ``quick``: DLG alone."""
    for data in ("digits", "photographs"):
        lenet = ClassifierCase(classifier="LeNet", data=data)
        yield lenet, Contender("dlg", "dlg", PUBLISHED_BUDGET)
        yield lenet, Contender("dlg, labels optimised", "dlg", PUBLISHED_BUDGET | {"labels": "optimised"})
    if quick:
        return
    for model in ("untrained", "trained"):
        for batch_size in (1, 8):
            resnet = ClassifierCase(classifier="ResNet", model=model, batch_size=batch_size)
            yield resnet, Contender("inverting-gradients", "inverting-gradients")


_HEADINGS = (
    "case",
    "attack",
    "n",
    "dB",
    "quartiles",
    "least",
    f">= {CONVERGED_DB:.0f} dB",
    "labels",
    "evals",
    "revision",
)


def by_case_and_attack(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of every case and attack, under what these are called."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((str(ClassifierCase(**row["case"])), row["attack"]), []).append(row)
    return cells


def _tables(rows: Sequence[Row]) -> list[Table]:
    cells = by_case_and_attack(rows)
    reasons = [f"{case}, {attack}: {row['status']}" for (case, attack), of in cells.items() for row in of]
    notes = [reason for reason in dict.fromkeys(reasons) if not reason.endswith(f": {OK}")]
    return [Table("classification", _HEADINGS, [_table_row(*cell, of) for cell, of in cells.items()], notes)]


def _table_row(case: str, attack: str, rows: Sequence[Row]) -> tuple[str, ...]:
    values = [value for row in rows for value in row["psnr"]]
    lower, _, upper = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    evaluations = [row["evaluations"] for row in rows if row["status"] == OK]
    return (
        case,
        attack,
        str(len(rows)),
        f"{statistics.median(values):.1f}",
        f"{lower:.1f}-{upper:.1f}",
        f"{min(values):.1f}",
        f"{100 * sum(value >= CONVERGED_DB for value in values) / len(values):.0f} %",
        f"{sum(row['labels_exact'] for row in rows)}/{len(rows)}",
        f"{statistics.median(evaluations):.0f}" if evaluations else "-",
        rows[0]["revision"],
    )


def _announce(row: Row) -> str:
    result = f"{statistics.median(row['psnr']):.1f} dB" if row["status"] == OK else row["status"]
    return f"{ClassifierCase(**row['case'])}, {row['attack']}, victim {row['victim']}: {result}"


def _figures(rows: Sequence[Row]) -> list[Row]:
    headings = _HEADINGS[:-1]
    return [dict(zip(headings, row, strict=False)) for row in _tables(rows)[0].rows]


BENCHMARK = Benchmark("classification", "attacks", _announce, _figures, _tables)
