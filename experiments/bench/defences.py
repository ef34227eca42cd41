"""The benchmark of the defences: each at several strengths, whether the attacker knows it or not, and its cost."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from attacks.attack import AttackError, Needs
from attacks.registry import create as create_attack
from experiments.bench.attack_tables import describe_verdicts
from experiments.bench.benchmark import Benchmark, Plan, Row
from experiments.bench.federations import DefenceMeasurement, Setup
from experiments.bench.summary import count_failures, count_verdicts
from experiments.bench.tables import Table
from experiments.summary import RECOGNISABLE_DB
from experiments.utility import DISTANCE, LOSS
from fl_sim.config import SettingsError
from fl_sim.defences import registry
from fl_sim.defences.registry import DEFENCES
from fl_sim.errors import nearest

CLIP_NORM = 0.5
"""About the median norm of the undefended clients' gradients after some rounds."""

PARAMETERS = 635_427
"""Of the U-Net that is trained."""


def _defended(name: str, strength: str, quick: bool = True, **arguments: Any) -> Setup:
    given = tuple(f"defence.args.{key}={value}" for key, value in arguments.items())
    return Setup(name, strength, (f"defence.name={name}", *given), quick=quick)


def _noised(name: str, share: float, quick: bool = True) -> Setup:
    """Clipped, with noise whose norm is expected to be that ``share`` of the norm that is clipped to."""
    strength = f"noise {100 * share:.0f} % of clip norm" if share else "no noise"
    multiplier = float(f"{share / PARAMETERS**0.5:.3g}")
    return _defended(name, strength, quick, clip_norm=CLIP_NORM, noise_multiplier=multiplier)


def _local_steps(steps: int, quick: bool) -> Setup:
    changes = ("client.update=weights", "client.lr=0.03", "strategy.name=FedAvg", "strategy.args={}")
    return Setup("local-steps", f"{steps} of SGD", (*changes, f"client.local_steps={steps}"), steps, quick)


SETUPS = (
    Setup("none"),
    _noised("clip-noise", 0, quick=False),
    _noised("clip-noise", 0.1),
    _noised("clip-noise", 0.3, quick=False),
    _noised("clip-noise", 1),
    _noised("clip-noise", 10, quick=False),
    _noised("dp-sgd", 1, quick=False),
    _defended("dp-sgd", "noise multiplier 1", clip_norm=CLIP_NORM, noise_multiplier=1.0),
    _defended("top-k", "10 %", fraction=0.1),
    _defended("top-k", "1 %", quick=False, fraction=0.01),
    _defended("signs", ""),
    _defended("stochastic-quantisation", "8 bits", quick=False, bits=8),
    _defended("stochastic-quantisation", "4 bits", bits=4),
    _defended("unshared-time-mlp", "projections", quick=False, parts="projections"),
    _defended("unshared-time-mlp", "all"),
    Setup("secure-aggregation", "sum of 4", ("defence.name=secure-aggregation",), 4),
    Setup("batch", "4 images", ("client.batch_size=4",), 4),
    Setup("batch", "8 images", ("client.batch_size=8",), 8, quick=False),
    _local_steps(1, quick=False),
    _local_steps(4, quick=True),
)
"""What is measured, in the order of the table."""

_ROUNDS, _QUICK_ROUNDS = 100, 30
_VICTIMS, _QUICK_VICTIMS = 4, 2
_QUICK_EVALUATIONS = 500


@dataclass(frozen=True)
class Options:
    """What to measure; ``only`` are names of setups or of other defences; all setups if it is empty."""

    only: Sequence[str] = ()
    attack: str = "residual"
    rounds: int | None = None
    victims: int | None = None
    quick: bool = False
    seed: int = 40961
    device: str = "cpu"


@dataclass(frozen=True)
class Cell:
    """One line of the table: a federation, seen in one round by an attacker who knows of the defence or does not.

    Attributes:
        defence_known: None where there is nothing to know.
        median_psnr: in dB over all images of all victims; an image that the attack failed on counts as 0 dB.
        timesteps: how many were recovered exactly, not at all and wrongly.
        heldout_loss, patch_distance: of the model before the first round and after the last; None: not finite.
        privacy: (epsilon, delta) after the last round; epsilon is None where it is infinite.
    """

    defence: str
    strength: str
    round: int
    defence_known: bool | None
    images: int
    median_psnr: float
    share_recognisable: float
    timesteps: dict[str, int] | None
    heldout_loss: tuple[float | None, float | None]
    patch_distance: tuple[float | None, float | None]
    privacy: dict[str, float | None] | None
    failures: dict[str, int]
    attack: str
    arguments: dict[str, Any]
    revision: str


def make_plan(options: Options) -> list[DefenceMeasurement]:
    """The measurements that the options ask for, in the order of the table.

    Raises:
        SettingsError: if there is no such defence, or it has arguments without defaults.
        AttackError: if there is no such attack, it has arguments without defaults, or it needs what the server of a
            private threat model does not know.
    """
    attack = create_attack(options.attack, {})
    if Needs.NOISE_AND_TIMESTEPS in attack.needs:
        raise AttackError(f"--attack {options.attack}: needs noise and timesteps, which these clients draw themselves")
    residual = attack.name == "residual"
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    return [
        DefenceMeasurement(
            setup=setup,
            rounds=rounds,
            attacked=(rounds,) if options.quick else tuple(sorted({1, rounds})),
            victims=options.victims or (_QUICK_VICTIMS if options.quick else _VICTIMS),
            seed=options.seed,
            attack=options.attack,
            arguments={"max_evaluations": _QUICK_EVALUATIONS} if options.quick and residual else {},
            device=options.device,
        )
        for setup in _chosen(options.only)
        if setup.quick or not options.quick
    ]


def bench_defences(options: Options, out: Path, jobs: int, console: Console) -> None:
    """Measure what ``options`` ask for, ``jobs`` federations side by side; ``out`` gets defences.json and defences.md.

    Raises:
        SettingsError, AttackError: if the options ask for what is not there, or ``out`` holds something else.
    """
    BENCHMARK.run(Plan(make_plan(options)), asdict(options), out, jobs, console)


def cells(row: Row) -> Iterator[Cell]:
    """What the table says of one federation: round after round, who knows of the defence first."""
    groups: dict[tuple[int, bool | None], list[Row]] = {}
    for attack in row["attacks"]:
        groups.setdefault((attack["round"], attack["defence_known"]), []).append(attack)
    for (server_round, known), attacks in groups.items():
        psnr = [value for attack in attacks for value in attack["psnr"]]
        yield Cell(
            defence=row["defence"],
            strength=row["strength"],
            round=server_round,
            defence_known=known,
            images=len(psnr),
            median_psnr=median(psnr),
            share_recognisable=sum(value >= RECOGNISABLE_DB for value in psnr) / len(psnr),
            timesteps=count_verdicts(attacks),
            heldout_loss=(row["before"][LOSS], row["after"][LOSS]),
            patch_distance=(row["before"][DISTANCE], row["after"][DISTANCE]),
            privacy=row["privacy"],
            failures=count_failures(attacks),
            attack=row["attack"],
            arguments=row["arguments"],
            revision=row["revision"],
        )


def _chosen(names: Sequence[str]) -> list[Setup]:
    """The setups of these names; a defence without one, as it is by default."""
    known = dict.fromkeys(setup.name for setup in SETUPS)
    strangers = [name for name in names if name not in known]
    for name in strangers:
        if ":" not in name and name not in DEFENCES.names():
            allowed = [*known, *(other for other in DEFENCES.names() if other not in known)]
            raise SettingsError(
                f"--only {name}: unknown; allowed: {', '.join(allowed)}, package.module:Class{nearest(name, allowed)}"
            )
        registry.create(name)
    own = [Setup(name, overrides=(f"defence.name={name}",)) for name in strangers]
    return [*(setup for setup in SETUPS if not names or setup.name in names), *own]


_HEADINGS = (
    "defence",
    "round",
    "known",
    "n",
    "dB",
    f">= {RECOGNISABLE_DB:.0f} dB",
    "timesteps",
    "held-out loss",
    "patch distance",
    "epsilon",
    "revision",
)
_BRIEF = ("defence", "round", "known", "dB", f">= {RECOGNISABLE_DB:.0f} dB", "timesteps", "held-out loss")
_KNOWN = {True: "yes", False: "no", None: "-"}
_KNOWLEDGE = {True: ", defence known", False: ", defence unknown", None: ""}
_LEGEND = (
    "known: whether the attacker knows of the defence; timesteps: exact / unknown / wrong; held-out loss and patch "
    "distance: before the first round -> after the last; epsilon at delta: of the client that has spent most, after "
    "the last round"
)


def _tables(rows: Sequence[Row]) -> list[Table]:
    found = [cell for row in rows for cell in cells(row)]
    notes = [_LEGEND]
    notes += [
        f"{_where(cell)}, round {cell.round}{_KNOWLEDGE[cell.defence_known]}: {count} failed: {reason}"
        for cell in found
        for reason, count in cell.failures.items()
    ]
    limited: dict[str, dict[str, None]] = {}
    for cell in found:
        for key, value in cell.arguments.items():
            limited.setdefault(f"{cell.attack}, {key} = {value}", {})[_where(cell)] = None
    notes += [f"{limit}: {', '.join(where)}" for limit, where in limited.items()]
    return [Table("defences", _HEADINGS, [_cell_row(cell) for cell in found], notes, _BRIEF)]


def _cell_row(cell: Cell) -> tuple[str, ...]:
    return (
        _where(cell),
        str(cell.round),
        _KNOWN[cell.defence_known],
        str(cell.images),
        f"{cell.median_psnr:.1f}",
        f"{100 * cell.share_recognisable:.0f} %",
        describe_verdicts(cell.timesteps),
        _change(*cell.heldout_loss),
        _change(*cell.patch_distance),
        _epsilon(cell.privacy),
        cell.revision,
    )


def _change(before: float | None, after: float | None) -> str:
    return " -> ".join("not finite" if value is None else f"{value:.2f}" for value in (before, after))


def _epsilon(privacy: dict[str, float | None] | None) -> str:
    if privacy is None:
        return "-"
    epsilon = "infinite" if privacy["epsilon"] is None else f"{privacy['epsilon']:.3g}"
    return f"{epsilon} at {privacy['delta']:.0e}"


def _where(cell: Cell) -> str:
    return f"{cell.defence} ({cell.strength})" if cell.strength else cell.defence


def _announce(row: Row) -> str:
    found = list(cells(row))
    psnr = [f"{cell.median_psnr:.1f} dB in round {cell.round}{_KNOWLEDGE[cell.defence_known]}" for cell in found]
    return f"{_where(found[0])}: {', '.join(psnr)}; held-out loss {_change(*found[0].heldout_loss)}"


BENCHMARK = Benchmark(
    "defences",
    "federations",
    _announce,
    figures=lambda rows: [asdict(cell) for row in rows for cell in cells(row)],
    tables=_tables,
)
