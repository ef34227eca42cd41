"""What the benchmark measures: suites of cases, and the attacks that contend in each.

A case says everything about a client's update and about what the attacker knows of it. With a contender it makes a
cell of the benchmark, which is measured on several victims.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from attacks.attack import Needs
from attacks.observation import ThreatModel
from attacks.registry import ATTACKS
from experiments.utility import strata
from fl_sim.diffusion import LocalOptimizer, unet_config

NETWORKS: dict[str, dict[str, Any]] = {
    "16": unet_config(16),
    "32-narrow": unet_config(32),
    "32-deep": unet_config(32, block_out_channels=(32, 64, 128)),
    "32": unet_config(32, block_out_channels=(64, 128), layers_per_block=2),
    "32-wide": unet_config(32, block_out_channels=(64, 128, 128)),
    "64": unet_config(64, block_out_channels=(128, 256, 384), layers_per_block=2),
    "128": unet_config(128, block_out_channels=(128, 256, 384), layers_per_block=2),
}
"""U-Nets of 0.6, 0.6, 2.5, 3.6, 4.2, 38 and 38 million parameters, by the side of the images they take."""

GPU_NETWORKS = frozenset({"64", "128"})
"""Networks that are left out where there is no GPU."""

STRATA = tuple((stratum.start, stratum.stop - 1) for stratum in strata(1000))
KNOWN, PRIVATE = ThreatModel.KNOWN, ThreatModel.PRIVATE


class Case(BaseModel):
    """One client's update, or the sum of several, and what the attacker knows of how it came about.

    Attributes:
        timesteps: first and last of those that are drawn from, uniformly.
        optimizer: of the local steps whose weight delta is sent; None if the gradient is.
        defence: what is done to the update before it is sent (experiments/bench/victims.py), ``strength`` how much.
        told: whether the attacker knows of the defence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    network: str = "16"
    model: Literal["untrained", "trained"] = "trained"
    timesteps: tuple[int, int] = (0, 800)
    threat: ThreatModel = PRIVATE
    batch_size: int = 1
    local_steps: int = 1
    num_clients: int = 1
    optimizer: LocalOptimizer | None = None
    defence: Literal["none", "noise", "clip", "top-k", "signs"] = "none"
    strength: float = 0.0
    told: bool = True

    @property
    def samples_per_client(self) -> int:
        """Images that one client trains on."""
        return self.batch_size * self.local_steps

    @property
    def samples(self) -> int:
        """Images behind the update."""
        return self.samples_per_client * self.num_clients


@dataclass(frozen=True)
class Contender:
    """An attack with its arguments, under the name that it has in the tables; the cheap ones are measured first."""

    name: str
    attack: str
    arguments: dict[str, Any] = field(default_factory=dict)
    cost: int = 0

    def applies(self, case: Case) -> bool:
        """Whether the threat model gives the attack what it needs; whatever else it refuses counts as a failure."""
        return case.threat is KNOWN or Needs.NOISE_AND_TIMESTEPS not in ATTACKS.find(self.attack).needs


_PUBLISHED = {"recipe": "published"}
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("residual", "residual"),
        Contender("dlg", "dlg"),
        Contender("gidm", "gidm", cost=1),
        Contender("gidm-latent", "gidm", {"phases": "latent"}, cost=1),
        Contender("gidm-pixels", "gidm", {"phases": "pixels"}, cost=1),
        Contender("gidm-plus", "gidm-plus", cost=1),
        Contender("inverting-gradients", "inverting-gradients", cost=1),
        Contender("inverting-gradients-short", "inverting-gradients", {"iterations": 600}, cost=1),
        Contender("gidm-pixels-published", "gidm", _PUBLISHED | {"phases": "pixels"}, cost=2),
        Contender("gidm-published", "gidm", _PUBLISHED, cost=2),
        Contender("gidm-plus-published", "gidm-plus", _PUBLISHED, cost=2),
    )
}

_BASELINES = ("residual", "dlg", "inverting-gradients", "gidm", "gidm-plus")
_SHORT_BASELINES = ("residual", "dlg", "inverting-gradients-short", "gidm", "gidm-plus")

_QUICK_STRATA = {"trained": STRATA[1:5], "untrained": STRATA[1:4:2]}


@dataclass(frozen=True)
class Entry:
    """A case, the names of its contenders, and who contends in the quick benchmark, on how many victims."""

    case: Case
    contenders: tuple[str, ...] = ("residual",)
    quick: tuple[str, ...] = ()
    quick_victims: int = 1


def _strata() -> Iterator[Entry]:
    for network, model, timesteps, threat in product(NETWORKS, ("trained", "untrained"), STRATA, (PRIVATE, KNOWN)):
        case = Case(suite="strata", network=network, model=model, timesteps=timesteps, threat=threat)
        quick: tuple[str, ...] = ()
        if network == "16" and threat is PRIVATE and timesteps in _QUICK_STRATA[model]:
            quick = ("residual",)
        elif network == "16" and model == "trained" and timesteps == (201, 500):
            quick = _SHORT_BASELINES
        yield Entry(case, _BASELINES, quick, quick_victims=2 if threat is PRIVATE else 1)


def _batch() -> Iterator[Entry]:
    for batch_size, last in product((2, 4, 8, 16), (999, 800)):
        case = Case(suite="batch", batch_size=batch_size, timesteps=(0, last))
        yield Entry(case, quick=("residual",) if (batch_size, last) == (2, 800) else ())


def _local_steps() -> Iterator[Entry]:
    for steps, lr, momentum in product((2, 4), (1e-2, 1e-3), (0.0, 0.9)):
        case = Case(suite="local-steps", local_steps=steps, optimizer=LocalOptimizer(lr=lr, momentum=momentum))
        yield Entry(case, quick=("residual",) if (steps, lr, momentum) == (2, 1e-2, 0.0) else ())


def _adam() -> Iterator[Entry]:
    for lr in (1e-3, 1e-4):
        case = Case(suite="adam", optimizer=LocalOptimizer(name="adam", lr=lr))
        yield Entry(case, quick=("residual",) if lr == 1e-3 else ())


def _signs() -> Iterator[Entry]:
    yield Entry(Case(suite="signs", defence="signs"), quick=("residual",))


def _noise() -> Iterator[Entry]:
    for strength, told in product((0.1, 1.0), (True, False)):
        case = Case(suite="noise", timesteps=(200, 200), defence="noise", strength=strength, told=told)
        yield Entry(case, quick=("residual",) if (strength, told) == (0.1, True) else ())


def _clip() -> Iterator[Entry]:
    for told in (True, False):
        yield Entry(Case(suite="clip", defence="clip", strength=0.5, told=told))


def _top_k() -> Iterator[Entry]:
    for told in (True, False):
        yield Entry(Case(suite="top-k", defence="top-k", strength=0.1, told=told))


def _sum() -> Iterator[Entry]:
    for threat in (PRIVATE, KNOWN):
        yield Entry(Case(suite="sum", num_clients=4, threat=threat), _BASELINES)


def _speed() -> Iterator[Entry]:
    """Both threats see the same gradients, so that one table may show who needs to know what."""
    known = ("residual", "dlg", "gidm", "gidm-latent", "gidm-pixels", "gidm-pixels-published", "gidm-published")
    yield Entry(Case(suite="speed", timesteps=(21, 800), threat=KNOWN), known, ("residual", "dlg", "gidm-pixels"))
    yield Entry(Case(suite="speed", timesteps=(21, 800)), ("residual", "gidm-plus-published"))


SUITES: dict[str, tuple[Entry, ...]] = {
    "strata": tuple(_strata()),
    "batch": tuple(_batch()),
    "local-steps": tuple(_local_steps()),
    "adam": tuple(_adam()),
    "signs": tuple(_signs()),
    "noise": tuple(_noise()),
    "clip": tuple(_clip()),
    "top-k": tuple(_top_k()),
    "sum": tuple(_sum()),
    "speed": tuple(_speed()),
}
