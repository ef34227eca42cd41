"""The benchmark of model inversion: what a trained classifier gives away, by Diff-MI, its parts, and baselines.

A row is one target: a classifier trained on private images, attacked by every method, judged by another classifier.
In the case of clients with one class each, it is a federation's global classifier.
"""

import base64
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from attacks.model_inversion.registry import create
from attacks.model_inversion.target import Target, TrainedClassifier
from experiments.bench.benchmark import Benchmark, Measurement, Plan, Row, RowFile
from experiments.bench.one_class_each import train_one_class_each
from experiments.bench.tables import Table
from experiments.classifier_training import train_classifier
from experiments.evaluator import evaluator_network, train_evaluator
from experiments.inversion_metrics import evaluate, image_figures
from experiments.pictures import grid, png_of
from experiments.public_images import check_disjoint, draw_blindly
from fl_sim.classification import accuracy, predict
from fl_sim.config import DataSettings, SettingsError
from fl_sim.draws import derive_seed, seeded_generator
from fl_sim.errors import nearest
from fl_sim.files import write_atomically
from fl_sim.images.sources import list_images

CEILING, CHANCE = "other private images", "random public images"
"""Two lines of every table that no attack is behind: the best and the worst that can be expected."""


@dataclass(frozen=True)
class Case:
    """Whose images are private and what is public.

    Attributes:
        data: where the private images are from.
        classes: the names of the private classes; their numbers are their places here.
        public: where the public images are from; None: from ``data``, of the same classes.
        public_classes: the names of the classes that public images are of.
        description: for the title of the table.
        one_class_each: whether every class is a client, and FedAvg trains the classifier; else it is trained in one
            place.
    """

    data: DataSettings
    classes: tuple[str, ...]
    public: DataSettings | None
    public_classes: tuple[str, ...]
    description: str
    one_class_each: bool = False


DIGITS = DataSettings(name="digits", image_size=12, channels=1)
LOW, HIGH = ("0", "1", "2", "3", "4"), ("5", "6", "7", "8", "9")
PHOTOGRAPHS = ("chelsea", "coffee", "rocket")
CASES = {
    "digits-overlapping": Case(DIGITS, LOW + HIGH, None, LOW + HIGH, "digits 0-9; public: other digits 0-9"),
    "digits-disjoint": Case(DIGITS, LOW, DIGITS, HIGH, "digits 0-4; public: digits 5-9"),
    "digits-class-per-client": Case(
        DIGITS, LOW, DIGITS, HIGH, "digits 0-4, every client holds one of them; public: digits 5-9", one_class_each=True
    ),
    "faces": Case(
        DataSettings(name="faces", image_size=16, channels=1),
        ("face", "other"),
        DataSettings(photographs=PHOTOGRAPHS, tiles_per_side=8, image_size=16, channels=1),
        PHOTOGRAPHS,
        "faces and other pictures; public: tiles of photographs without people",
    ),
}

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "most confident public images": ("diff-mi", {"variant": "public-images"}),
    "classifier, no prior (max-margin)": ("max-margin", {}),
    "Diff-MI: prior sampled, not fine-tuned": ("diff-mi", {"variant": "plain-sampling"}),
    "Diff-MI: prior sampled, fine-tuned": ("diff-mi", {"variant": "sampling-only"}),
    "Diff-MI: search, prior's steps only": ("diff-mi", {"variant": "prior-only"}),
    "Diff-MI: search, classifier's steps only": ("diff-mi", {"variant": "classifier-only"}),
    "Diff-MI: search, not fine-tuned": ("diff-mi", {"variant": "no-fine-tuning"}),
    "Diff-MI": ("diff-mi", {"variant": "full"}),
    "Diff-MI, then PGD": ("diff-mi", {"variant": "full", "pgd": {"iterations": 10}}),
}
"""Baselines, the parts of Diff-MI alone, and the whole."""


@dataclass(frozen=True)
class Scale:
    """How much is spent on a case.

    A target is trained for ``classifier_steps`` in one place, or for ``rounds`` by a federation.
    """

    repetitions: int
    images_per_class: int
    classifier_steps: int
    rounds: int
    evaluator_steps: int
    arguments: Mapping[str, dict[str, Any]]


QUICK = Scale(repetitions=3, images_per_class=8, classifier_steps=200, rounds=60, evaluator_steps=800, arguments={})
WHOLE = Scale(
    repetitions=5,
    images_per_class=20,
    classifier_steps=1000,
    rounds=60,
    evaluator_steps=2000,
    arguments={
        "diff-mi": {"training": {"steps": 3000, "block_out_channels": [32, 64]}, "fine_tuning": {"epochs": 30}},
        "max-margin": {"iterations": 1000},
    },
)


@dataclass(frozen=True)
class Split:
    """Images [N,C,H,W] in [-1, 1] and the numbers of their classes int64 [N]; ``public`` ones have none."""

    private: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor
    public: Tensor


@dataclass(frozen=True)
class InversionMeasurement(Measurement):
    """Every method on one target; split, classifiers and attacks follow from ``seed`` and the repetition."""

    case: str
    repetition: int
    quick: bool
    seed: int

    def subject(self) -> Row:
        """Case, repetition, scale, seed."""
        return asdict(self)

    def measure(self) -> Row:
        """The figures of every method and of both reference lines, the classifiers' accuracy, and a picture.

        ``by_class`` has, for every method, those of CLASS_FIGURES for each class in order.
        """
        scale = QUICK if self.quick else WHOLE
        split = split_images(CASES[self.case], self._seed("split"))
        check_disjoint(split.public, torch.cat([split.private, split.held_out]))
        config, target, evaluator = self._classifiers(split, scale)
        attacked = Target(TrainedClassifier(config, target.state_dict()), split.public, self._seed("attack"))
        found = {CEILING: _some_of_each(split.held_out, split.held_out_labels, scale.images_per_class)}
        guessed = torch.arange(attacked.num_classes).repeat_interleave(scale.images_per_class)
        found[CHANCE] = draw_blindly(split.public, len(guessed), self._seed("chance")), guessed
        evaluations = {}
        for label, (method, arguments) in METHODS.items():
            given = {"images_per_class": scale.images_per_class, **scale.arguments.get(method, {}), **arguments}
            result = create(method, given).invert(attacked)
            numbers = result.classes.repeat_interleave(scale.images_per_class)
            found[label], evaluations[label] = (result.images.flatten(0, 1), numbers), result.evaluations
        private = (split.private + 1) / 2
        figures = {
            label: evaluate(images, labels, private, split.labels, target, evaluator)
            for label, (images, labels) in found.items()
        }
        by_class = {
            label: _means_by_class(image_figures(images, labels, private, split.labels, target, evaluator), labels)
            for label, (images, labels) in found.items()
        }
        return {
            "accuracy": _accuracy(target, split),
            "evaluator_accuracy": _accuracy(evaluator, split),
            "private_images": len(split.private),
            "public_images": len(split.public),
            "figures": figures,
            "by_class": by_class,
            "evaluations": evaluations,
            "picture": _picture(found),
        }

    def _seed(self, purpose: str) -> int:
        return derive_seed(self.seed, "inversion", self.case, self.repetition, purpose)

    def _classifiers(self, split: Split, scale: Scale) -> tuple[dict[str, Any], nn.Module, nn.Module]:
        """The target's configuration, the target, and the evaluator: another architecture, its weights unlike."""
        channels, height, width = split.private.shape[1:]
        classes = len(CASES[self.case].classes)
        shape = {"num_classes": classes, "image_size": [height, width], "in_channels": channels}
        config = {"_class_name": "ConvNet", **shape}
        train, spent = (
            (train_one_class_each, scale.rounds)
            if CASES[self.case].one_class_each
            else (train_classifier, scale.classifier_steps)
        )
        target = train(config, split.private, split.labels, spent, self._seed("target"))
        judge = evaluator_network(config, classes, (channels, height, width))
        seed = self._seed("evaluator")
        return config, target, train_evaluator(judge, split.private, split.labels, scale.evaluator_steps, seed)


def bench_inversion(
    quick: bool, only: Sequence[str], repetitions: int | None, seed: int, jobs: int, out: Path, console: Console
) -> None:
    """Measure every case; ``out`` gets inversion.json, inversion.md and a picture of every target.

    Raises:
        SettingsError: if ``only`` names no case, or ``out`` holds something else.
    """
    for name in only:
        if name not in CASES:
            raise SettingsError(f"--only {name}: unknown; allowed: {', '.join(CASES)}{nearest(name, CASES)}")
    count = repetitions or (QUICK if quick else WHOLE).repetitions
    plan = [InversionMeasurement(case, number, quick, seed) for number in range(count) for case in only or CASES]
    options = {"quick": quick, "only": list(only), "repetitions": repetitions, "seed": seed}
    BENCHMARK.run(Plan(plan), options, out, jobs, console)
    for row in RowFile(out).rows_of(plan):
        write_picture(row, out / f"inversion-{row['case']}-{row['repetition']}.png")


def write_picture(row: Row, path: Path) -> None:
    """Write the picture of a row: classes in rows, private and public images and then every method's in columns."""
    write_atomically(path, lambda file: file.write_bytes(base64.b64decode(row["picture"])))


def split_images(case: Case, seed: int) -> Split:
    """Private, held-out and public images of a case, drawn with ``seed``.

    Four fifths of the images are private and one fifth is held out; where public ones are of the same classes, they are
    half of all.
    """
    images, labels = _load(case.data, case.classes)
    order = torch.randperm(len(images), generator=seeded_generator(seed))
    if case.public is None:
        half = len(order) // 2
        public, order = images[order[:half]], order[half:]
    else:
        public, _ = _load(case.public, case.public_classes)
    private, held_out = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    return Split(images[private], labels[private], images[held_out], labels[held_out], public)


def _load(data: DataSettings, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The images of those classes [N,C,H,W], and for each the place of its class int64 [N]."""
    listed = list_images(data)
    chosen = [index for index, label in enumerate(listed.labels) if label in classes]
    labels = torch.tensor([classes.index(listed.labels[index]) for index in chosen])
    return listed.decode(chosen, data.channels or 3), labels


def _some_of_each(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most ``count`` images of every class, in [0, 1], with their classes."""
    chosen = torch.cat([(labels == c).nonzero()[:count, 0] for c in labels.unique()])
    return (images[chosen] + 1) / 2, labels[chosen]


def _means_by_class(figures: Mapping[str, Tensor], labels: Tensor) -> dict[str, list[float]]:
    """The mean of each of CLASS_FIGURES, [N] like ``labels`` int64, over the images of every class."""
    classes = labels.unique()
    return {name: [figures[name][labels == c].double().mean().item() for c in classes] for name in CLASS_FIGURES}


def _accuracy(model: nn.Module, split: Split) -> float:
    """On images that it was not trained on."""
    return accuracy(predict(model, split.held_out), split.held_out_labels)


def _picture(found: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """A PNG file in base64: a row for every class, a column for every entry of ``found``, its first image there."""
    columns = [torch.stack([images[labels == c][0] for c in labels.unique()]) for images, labels in found.values()]
    rows = torch.stack(columns, dim=1)
    return base64.b64encode(png_of(grid(rows.flatten(0, 1), columns=len(columns)))).decode()


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Median, least and largest of every figure over the repetitions, for every case and method."""
    summaries = []
    for case in dict.fromkeys(row["case"] for row in rows):
        of_case = [row["figures"] for row in rows if row["case"] == case]
        for method in of_case[0]:
            figures = {name: _spread([row[method][name] for row in of_case]) for name in of_case[0][method]}
            summaries.append({"case": case, "method": method, "repetitions": len(of_case), **figures})
    return summaries


def _spread(values: Sequence[float | None]) -> list[float] | None:
    """[median, least, largest] of those that are there."""
    known = [value for value in values if value is not None]
    return [statistics.median(known), min(known), max(known)] if known else None


SHOWN = {
    "evaluator top-1": ("top1", ".2f"),
    "top-5": ("top5", ".2f"),
    "attacked top-1": ("target_top1", ".2f"),
    "KNN, successes": ("knn_successes", ".1f"),
    "KNN, all": ("knn_all", ".1f"),
    "feature Fréchet": ("feature_frechet", ".1f"),
    "coverage": ("coverage", ".2f"),
    "density": ("density", ".2f"),
    "PSNR": ("psnr", ".1f"),
}
"""Columns of the tables: which figure, in which format."""


CLASS_FIGURES = {"evaluator_top1": ".2f", "knn_distance": ".1f", "psnr": ".1f"}
"""What is shown of every client: the keys that ``image_figures`` has, and formats."""


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table for every case: methods in rows, with the range over the repetitions where there are several.

    Where every class is a client, a second table says what each of them lost.
    """
    shown = []
    for case in dict.fromkeys(row["case"] for row in rows):
        of_case = [row for row in rows if row["case"] == case]
        lines = [
            (line["method"], *(_cell(line[name], form) for name, form in SHOWN.values())) for line in summarise(of_case)
        ]
        classes = len(CASES[case].classes)
        known = {name: _spread([row[name] for row in of_case]) for name in ("accuracy", "evaluator_accuracy")}
        notes = [
            f"chance of top-1: {1 / classes:.2f}, of top-5: {min(1.0, 5 / classes):.2f}; targets: {len(of_case)}",
            f"held-out accuracy of the attacked classifier {_cell(known['accuracy'], '.2f')}, of the evaluator "
            f"{_cell(known['evaluator_accuracy'], '.2f')}",
        ]
        brief = ("method", "evaluator top-1", "KNN, all", "coverage")
        shown.append(Table(f"{case}: {CASES[case].description}", ("method", *SHOWN), lines, notes, brief))
        if CASES[case].one_class_each:
            shown.append(_client_table(case, of_case))
    return shown


def _client_table(case: str, rows: Sequence[Row]) -> Table:
    """Methods in rows, clients in columns: the median over the targets of each of CLASS_FIGURES."""
    clients = CASES[case].classes
    lines = []
    for method in rows[0]["by_class"]:
        cells = []
        for client in range(len(clients)):
            values = {name: [row["by_class"][method][name][client] for row in rows] for name in CLASS_FIGURES}
            cells.append(
                ", ".join(format(statistics.median(values[name]), form) for name, form in CLASS_FIGURES.items())
            )
        lines.append((method, *cells))
    notes = [
        "evaluator top-1, KNN over all images, PSNR in dB; nobody else in the federation holds images of that class"
    ]
    headings = tuple(f"client {number}: {name}" for number, name in enumerate(clients))
    return Table(f"{case}: what each client lost", ("method", *headings), lines, notes)


def _cell(spread: Sequence[float] | None, form: str) -> str:
    if spread is None:
        return "none"
    median, least, largest = (format(value, form) for value in spread)
    return median if least == largest else f"{median} ({least} to {largest})"


def announce(row: Row) -> str:
    """Case and repetition: the evaluator's accuracy on Diff-MI's images, and without a prior."""
    whole, bare = (row["figures"][name]["top1"] for name in ("Diff-MI", "classifier, no prior (max-margin)"))
    return f"{row['case']}, target {row['repetition']}: evaluator {whole:.0%} by Diff-MI, {bare:.0%} without a prior"


BENCHMARK = Benchmark("inversion", "targets", announce, summarise, tables)
