"""The benchmark of label recovery: how often the labels behind a classifier's gradient are exact, unknown or wrong."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console

from attacks.inversion.problem import InversionProblem
from attacks.labels.recovery import RecoveredLabels, recover_labels
from experiments.bench.benchmark import Benchmark, Measurement, Plan, Row
from experiments.bench.classifiers import ClassifierCase, make_classifying_victim
from experiments.bench.tables import Table

VERDICTS = ("exact", "unknown", "wrong")
"""All labels recovered, with how often each occurs; not all; a wrong one, or one said to occur that does not."""


@dataclass(frozen=True)
class LabelMeasurement(Measurement):
    """The first so many ``victims`` of a case."""

    case: ClassifierCase
    victims: int
    seed: int

    def subject(self) -> Row:
        """Case, victims and seed."""
        return {"case": self.case.model_dump(mode="json"), "victims": self.victims, "seed": self.seed}

    def measure(self) -> Row:
        """Verdicts, the margins of what was recovered, and the share of the labels that were certain in the rest."""
        verdicts, margins, certain = [], [], []
        for index in range(self.victims):
            victim = make_classifying_victim(self.case, self.seed, index)
            recovered = recover_labels(InversionProblem(victim.observation, "cpu"))
            verdicts.append(judge(victim.labels.tolist(), recovered))
            if recovered.known:
                margins.append(recovered.margin)
            else:
                certain.append(len(recovered.distinct) / len(victim.labels.unique()))
        return {
            **{name: verdicts.count(name) for name in VERDICTS},
            "least_margin": min(margins, default=None),
            "median_margin": median(margins) if margins else None,
            "certain_of_unknown": sum(certain) / len(certain) if certain else None,
        }


def bench_labels(victims: int, seed: int, jobs: int, out: Path, console: Console) -> None:
    """Measure every case on as many ``victims``; ``out`` gets labels.json and labels.md.

    Raises:
        SettingsError: if ``out`` holds something else.
    """
    plan = Plan([LabelMeasurement(case, victims, seed) for case in cases()])
    BENCHMARK.run(plan, {"victims": victims, "seed": seed}, out, jobs, console)


def cases() -> Iterator[ClassifierCase]:
    """Every classifier, untrained and trained: single images, batches, and what a client may do to its gradient."""
    for classifier in ("LeNet", "ConvNet", "ResNet"):
        for model in ("untrained", "trained"):
            usual = ClassifierCase(classifier=classifier, model=model)
            yield usual
            for batch_size in (2, 4, 8, 16, 32):
                batch = usual.model_copy(update={"batch_size": batch_size})
                if batch_size <= 8:
                    yield batch
                yield batch.model_copy(update={"labels": "repeated"})
                yield batch.model_copy(update={"data": "photographs"})
    for batch_size in (1, 4):
        usual = ClassifierCase(classifier="ResNet", model="trained", batch_size=batch_size)
        for known in (True, False):
            yield usual.model_copy(update={"defence": "noise", "strength": 0.1, "defence_known": known})
            yield usual.model_copy(update={"defence": "top-k", "strength": 0.1, "defence_known": known})
        yield usual.model_copy(update={"defence": "clip", "strength": 0.5})
        yield usual.model_copy(update={"defence": "signs"})


def judge(truth: Sequence[int], recovered: RecoveredLabels) -> str:
    """One of VERDICTS, for one victim."""
    if recovered.known:
        return "exact" if Counter(recovered.labels.tolist()) == Counter(truth) else "wrong"
    return "unknown" if set(recovered.distinct.tolist()) <= set(truth) else "wrong"


_HEADINGS = ("case", "n", *VERDICTS, "least margin", "median", "certain in the unknown", "revision")


def _tables(rows: Sequence[Row]) -> list[Table]:
    return [Table("labels", _HEADINGS, [_table_row(row) for row in rows])]


def _table_row(row: Row) -> tuple[str, ...]:
    counts = [str(row[name]) for name in ("victims", *VERDICTS)]
    margins = ["-" if row[name] is None else f"{row[name]:.1f}" for name in ("least_margin", "median_margin")]
    certain = row["certain_of_unknown"]
    share = "-" if certain is None else f"{100 * certain:.0f} %"
    return (str(ClassifierCase(**row["case"])), *counts, *margins, share, row["revision"])


def _announce(row: Row) -> str:
    return f"{ClassifierCase(**row['case'])}: {', '.join(f'{row[name]} {name}' for name in VERDICTS)}"


def _figures(rows: Sequence[Row]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in VERDICTS}


BENCHMARK = Benchmark("labels", "cases", _announce, _figures, _tables)
