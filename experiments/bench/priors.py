"""The benchmark of attacks with a generative prior, beside attacks without one, on the same classifiers' gradients.

Every victim is one image; its label is private. Every search has the same number of evaluations. The prior was trained
on other images than the victims': photographs on three other photographs, digits on the half that no victim is from.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from rich.console import Console

from experiments.bench.attack_measurement import attempt
from experiments.bench.benchmark import Benchmark, Measurement, Plan, Row
from experiments.bench.cases import Contender
from experiments.bench.classification import by_case_and_attack, judge
from experiments.bench.classifiers import ClassifierCase, make_classifying_victim
from experiments.bench.tables import Table
from experiments.checkpoint import load_checkpoint, save_checkpoint
from experiments.leakage import OK
from experiments.package_data import BUNDLED_PRIORS
from experiments.summary import RECOGNISABLE_DB
from fl_sim.checkpoint import Checkpoint
from fl_sim.config import SettingsError
from fl_sim.diffusion import DiffusionTask
from fl_sim.draws import derive_seed
from fl_sim.network import build_model

EVALUATIONS = 100
"""Of every search, which leaves a prior of 1.4 million parameters half a minute on one core."""
QUICK_EVALUATIONS = 20
SAMPLER_STEPS = 4
"""Of the fine-tuned prior; on two tuning victims four found more than two, in half the time of ten."""

Source = Literal["none", "trained", "untrained"]


@dataclass(frozen=True)
class PriorContender(Contender):
    """An attack, and whether its prior knows images; ``prior`` "untrained": the same network with random weights."""

    prior: Source = "none"


def contenders(evaluations: int) -> list[PriorContender]:
    """The two attacks with a prior, GIDM by phases, and those that know nothing of images, at equal evaluations."""
    third = max(evaluations // 3, 1)
    tuned: dict[str, Any] = {"iterations": evaluations, "candidates": 1, "sampler_steps": SAMPLER_STEPS}
    both = {"latent_iterations": third, "pixel_iterations": evaluations - third}
    guided = {"steps": min(100, evaluations)}
    return [
        PriorContender("fine-tuning", "gradient-guided-finetuning", tuned, prior="trained"),
        PriorContender("fine-tuning, untrained", "gradient-guided-finetuning", tuned, prior="untrained"),
        PriorContender("sampling", "gradient-guided-sampling", guided, prior="trained"),
        PriorContender("gidm", "gidm", both, prior="trained"),
        PriorContender(
            "gidm, latents", "gidm", both | {"phases": "latent", "latent_iterations": evaluations}, prior="trained"
        ),
        PriorContender("gidm, pixels", "gidm", both | {"phases": "pixels", "pixel_iterations": evaluations}),
        PriorContender("inverting-gradients", "inverting-gradients", {"iterations": evaluations}),
        PriorContender("dlg", "dlg", {"max_evaluations": evaluations}),
    ]


PHOTOGRAPHS_32: dict[str, Any] = {"classifier": "ConvNet", "data": "photographs", "image_size": 32}

NOISE = (0.0, 0.01, 0.1, 1.0)
"""Norm of the noise as a share of the gradient's; the attacker knows it."""


def _noisy(strengths: Sequence[float], **facts: Any) -> list[ClassifierCase]:
    return [
        ClassifierCase(model=model, defence="noise" if strength else "none", strength=strength, **facts)
        for model in ("untrained", "trained")
        for strength in strengths
    ]


SUITES: dict[str, list[ClassifierCase]] = {
    "convnet": _noisy(NOISE, **PHOTOGRAPHS_32),
    "resnet": _noisy((0.0, 1.0), classifier="ResNet", data="photographs", image_size=32),
    "digits": _noisy(NOISE, classifier="ConvNet", data="digits", image_size=16),
    "defences": [
        ClassifierCase(model=model, defence=defence, strength=strength, **PHOTOGRAPHS_32)
        for model in ("untrained", "trained")
        for defence, strength in (("clip", 0.5), ("top-k", 0.1), ("top-k", 0.01), ("signs", 0.0), ("noise", 10.0))
    ],
    "large": [ClassifierCase(classifier="ConvNet", data="photographs", image_size=side) for side in (64, 128)],
}
"""What is measured, by the name that ``--only`` takes."""
VICTIMS = {"large": 1}
"""Victims of a case where they are not ten."""


@dataclass(frozen=True)
class PriorMeasurement(Measurement):
    """One contender on victim ``index`` of a case; ``prior`` is the checkpoint behind its prior."""

    case: ClassifierCase
    contender: PriorContender
    index: int
    seed: int
    prior: Path | None

    def subject(self) -> Row:
        """Case, attack, prior, victim and seed."""
        return {
            "case": self.case.model_dump(mode="json"),
            "attack": self.contender.name,
            "arguments": self.contender.arguments,
            "prior": self.prior.name if self.prior else None,
            "victim": self.index,
            "seed": self.seed,
        }

    def measure(self) -> Row:
        """PSNR, evaluations, seconds and memory; a failure counts as the worst PSNR."""
        victim = make_classifying_victim(self.case, self.seed, self.index)
        attack, seed = self.contender.attack, derive_seed(self.seed, "attack", self.contender.attack, self.index)
        with TemporaryDirectory() as folder:
            arguments = self.contender.arguments | self._prior(Path(folder))
            return judge(victim, attempt(attack, arguments, victim.observation, seed, self.device))

    def _prior(self, folder: Path) -> dict[str, str]:
        """The argument that names the prior, if there is one; one without knowledge is written into ``folder``."""
        if self.prior is None:
            return {}
        if self.contender.prior == "trained":
            return {"prior": str(self.prior)}
        save_checkpoint(folder / "untrained.safetensors", untrained(load_checkpoint(self.prior), self.seed))
        return {"prior": str(folder / "untrained.safetensors")}


def untrained(prior: Checkpoint, seed: int) -> Checkpoint:
    """The prior's network with random weights in place of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "untrained prior"))
        return Checkpoint(build_model(prior.model).state_dict(), prior.model, prior.task, {})


@dataclass(frozen=True)
class Options:
    """What to measure; ``only`` empty: every suite. ``victims`` and ``evaluations`` None: those of the benchmark."""

    only: Sequence[str] = ()
    victims: int | None = None
    evaluations: int | None = None
    quick: bool = False
    seed: int = 0
    priors: Sequence[Path] = ()


def make_plan(options: Options) -> Plan:
    """The measurements that the options ask for; every case gets a victim before any gets the next.

    Raises:
        SettingsError: if a suite is not there, a prior is no diffusion model, or nothing is left to measure.
    """
    suites = options.only or (("convnet",) if options.quick else tuple(SUITES))
    if unknown := [name for name in suites if name not in SUITES]:
        raise SettingsError(f"--only {unknown[0]}: unknown; allowed: {', '.join(SUITES)}")
    priors = _by_shape(options.priors)
    planned = [(case, index) for suite in suites for case in SUITES[suite] for index in range(_victims(suite, options))]
    evaluations = options.evaluations or (QUICK_EVALUATIONS if options.quick else EVALUATIONS)
    measurements: list[PriorMeasurement] = []
    left_out: dict[str, None] = {}
    for case, index in sorted(planned, key=lambda pair: pair[1]):
        for contender in contenders(evaluations):
            prior = priors.get(_shape(case)) if contender.prior != "none" else None
            if contender.prior == "none" or prior is not None:
                measurements.append(PriorMeasurement(case, contender, index, options.seed, prior))
            else:
                side = case.image_size
                left_out[f"attacks with a prior on {case.data} {side}x{side}: no prior (--prior FILE)"] = None
    return Plan(measurements, list(left_out))


def _victims(suite: str, options: Options) -> int:
    return options.victims or (1 if options.quick else VICTIMS.get(suite, 10))


def _by_shape(given: Sequence[Path]) -> dict[tuple[int, ...], Path]:
    """The priors by the shape [C,H,W] of their images: those given, and the bundled one for photographs."""
    shapes: dict[tuple[int, ...], Path] = {}
    for path in (BUNDLED_PRIORS["photographs-32"], *given):
        checkpoint = load_checkpoint(path)
        if checkpoint.image_shape is None or not isinstance(checkpoint.task, DiffusionTask):
            raise SettingsError(f"--prior {path}: no diffusion model that says for which size of images it is")
        shapes[tuple(checkpoint.image_shape)] = path
    return shapes


def _shape(case: ClassifierCase) -> tuple[int, ...]:
    return (1 if case.data == "digits" else 3, case.image_size, case.image_size)


def bench_priors(options: Options, jobs: int, out: Path, console: Console) -> None:
    """Measure what ``options`` ask for; ``out`` gets priors.json and priors.md.

    Raises:
        SettingsError: as ``make_plan``, or if ``out`` holds something else.
    """
    said: Row = {"only": list(options.only), "victims": options.victims, "evaluations": options.evaluations}
    said |= {"quick": options.quick, "seed": options.seed, "prior": list(options.priors)}
    BENCHMARK.run(make_plan(options), said, out, jobs, console)


HEADINGS = (
    "attack",
    "n",
    "dB",
    "quartiles",
    "least",
    "best",
    f">= {RECOGNISABLE_DB:.0f} dB",
    "evals",
    "seconds",
    "MiB",
)
BRIEF = ("attack", "n", "dB", "quartiles", f">= {RECOGNISABLE_DB:.0f} dB", "seconds")


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For every case and attack: medians and spread of PSNR over all victims, failures among them."""
    return [_figures_of(case, attack, of) for (case, attack), of in by_case_and_attack(rows).items()]


def _figures_of(case: str, attack: str, rows: Sequence[Row]) -> dict[str, Any]:
    values = [value for row in rows for value in row["psnr"]]
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    entry = {"case": case, "attack": attack, "victims": len(rows), "median": median, "quartiles": [lower, upper]}
    entry |= {"least": min(values), "best": max(values)}
    entry["recognisable"] = sum(value >= RECOGNISABLE_DB for value in values) / len(values)
    finished = [row for row in rows if row["status"] == OK]
    for name in ("evaluations", "seconds", "peak_memory"):
        entry[name] = statistics.median(row[name] for row in finished) if finished else None
    return entry


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table for every case."""
    entries, cells = figures(rows), by_case_and_attack(rows)
    shown = []
    for case in dict.fromkeys(entry["case"] for entry in entries):
        of_case = [row for (name, _), of in cells.items() if name == case for row in of]
        notes = ["revision " + ", ".join(dict.fromkeys(row["revision"] for row in of_case))]
        notes += dict.fromkeys(f"{row['attack']}: {row['status']}" for row in of_case if row["status"] != OK)
        lines = [_line(entry) for entry in entries if entry["case"] == case]
        shown.append(Table(case, HEADINGS, lines, notes, BRIEF))
    return shown


def _line(entry: Mapping[str, Any]) -> tuple[str, ...]:
    lower, upper = entry["quartiles"]
    counted = [entry[name] for name in ("evaluations", "seconds", "peak_memory")]
    return (
        entry["attack"],
        str(entry["victims"]),
        f"{entry['median']:.1f}",
        f"{lower:.1f}-{upper:.1f}",
        f"{entry['least']:.1f}",
        f"{entry['best']:.1f}",
        f"{100 * entry['recognisable']:.0f} %",
        *("-" if value is None else f"{value:.0f}" for value in counted),
    )


def announce(row: Row) -> str:
    """Case, attack, victim and what came out."""
    result = f"{row['psnr'][0]:.1f} dB" if row["status"] == OK else row["status"]
    return f"{ClassifierCase(**row['case'])}, {row['attack']}, victim {row['victim']}: {result}"


BENCHMARK = Benchmark("priors", "attacks", announce, figures, tables)
