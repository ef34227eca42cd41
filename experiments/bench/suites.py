"""The suites of the benchmark of the attacks: which attacks contend in which cases, on how many victims."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from experiments.bench.cases import CLASS_CONDITIONAL, KNOWN, OWN_NETWORK, PRIVATE, Case
from experiments.utility import strata
from fl_sim.network import LocalOptimizer

MAIN, SCALE = "main", "scale"
ON_REQUEST = (MAIN, SCALE)
"""Suites that are measured only where they are asked for by name."""

STRATA = tuple((stratum.start, stratum.stop - 1) for stratum in strata(1000))

_BASELINES = ("residual", "dlg", "inverting-gradients", "gidm", "gidm-plus")
_SHORT_BASELINES = ("residual", "dlg", "inverting-gradients-short", "gidm", "gidm-plus")

_QUICK_STRATA = {"trained": STRATA[1:5], "untrained": STRATA[1:4:2]}


@dataclass(frozen=True)
class Entry:
    """A case, the names of its contenders, and who contends in the quick benchmark; each on how many victims."""

    case: Case
    contenders: tuple[str, ...] = ("residual",)
    victims: int = 10
    quick: tuple[str, ...] = ()
    quick_victims: int = 1


def _strata() -> Iterator[Entry]:
    networks = ("16", "32-narrow", "32-deep", "32", "32-wide")
    for network, model, timesteps, threat in product(networks, ("trained", "untrained"), STRATA, (PRIVATE, KNOWN)):
        case = Case(suite="strata", network=network, model=model, timesteps=timesteps, threat=threat)
        quick: tuple[str, ...] = ()
        if network == "16" and threat is PRIVATE and timesteps in _QUICK_STRATA[model]:
            quick = ("residual",)
        elif network == "16" and model == "trained" and timesteps == (201, 500):
            quick = _SHORT_BASELINES
        yield Entry(case, _BASELINES, quick=quick, quick_victims=2 if threat is PRIVATE else 1)


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
    for strength, known in product((0.1, 1.0), (True, False)):
        case = Case(suite="noise", timesteps=(200, 200), defence="noise", strength=strength, defence_known=known)
        yield Entry(case, quick=("residual",) if (strength, known) == (0.1, True) else ())


def _clip() -> Iterator[Entry]:
    for known in (True, False):
        yield Entry(Case(suite="clip", defence="clip", strength=0.5, defence_known=known))


def _top_k() -> Iterator[Entry]:
    for known in (True, False):
        yield Entry(Case(suite="top-k", defence="top-k", strength=0.1, defence_known=known))


def _sum() -> Iterator[Entry]:
    for threat in (PRIVATE, KNOWN):
        yield Entry(Case(suite="sum", num_clients=4, threat=threat), _BASELINES)


def _labels() -> Iterator[Entry]:
    """With labels and without."""
    for batch_size, network in product((1, 4), (CLASS_CONDITIONAL, "16")):
        yield Entry(Case(suite="labels", network=network, model="untrained", batch_size=batch_size))


def _speed() -> Iterator[Entry]:
    """Both threats see the same gradients, so that one table may show who needs to know what."""
    known = ("residual", "dlg", "gidm", "gidm-latent", "gidm-pixels", "gidm-pixels-published", "gidm-published")
    yield Entry(Case(suite="speed", timesteps=(21, 800), threat=KNOWN), known, quick=("residual", "dlg", "gidm-pixels"))
    yield Entry(Case(suite="speed", timesteps=(21, 800)), ("residual", "gidm-plus-published"))


def _main() -> Iterator[Entry]:
    """The main table of docs/benchmarks.md, at one revision and from one seed: single images in every stratum, of the
    small network (ten victims, known noise and timesteps beside private ones) and of the wide one (three victims); then
    several images behind an update, and what clients do to it. Fewer victims have to do where an attack takes many
    minutes or fails anyway.
    """
    for network, model, timesteps in product(("16", "32-wide"), ("trained", "untrained"), STRATA):
        single = Case(suite=MAIN, network=network, model=model, timesteps=timesteps)
        yield Entry(single, victims=10 if network == "16" else 3)
        if network == "16":
            known = single.model_copy(update={"threat": KNOWN})
            yield Entry(known)
            yield Entry(known, ("dlg",), victims=5)
            yield Entry(known, ("gidm",), victims=3)
            yield Entry(single, ("gidm-plus",), victims=1)
    for batch_size, victims in ((2, 10), (4, 5), (8, 3)):
        yield Entry(Case(suite=MAIN, batch_size=batch_size), victims=victims)
    for (steps, victims), lr in product(((2, 5), (4, 3)), (1e-2, 1e-3)):
        yield Entry(Case(suite=MAIN, local_steps=steps, optimizer=LocalOptimizer(lr=lr)), victims=victims)
    for strength in (0.1, 1.0):
        yield Entry(Case(suite=MAIN, timesteps=(200, 200), defence="noise", strength=strength))
    yield Entry(Case(suite=MAIN, defence="signs"), victims=5)
    for lr in (1e-3, 1e-4):
        yield Entry(Case(suite=MAIN, optimizer=LocalOptimizer(name="adam", lr=lr)), victims=5)


def _scale() -> Iterator[Entry]:
    """Networks as large as those in use; at 128x128 also who is first with known noise and timesteps and 1,000
    evaluations. Then a network that is not diffusers', what is sent in 16 bits, and grey images.
    """
    usual = Case(suite=SCALE, model="untrained", timesteps=(21, 800))
    for network, victims in (("ddpm-cifar10", 5), ("64-narrow", 5), ("64", 3), ("128", 2)):
        yield Entry(usual.model_copy(update={"network": network}), victims=victims)
    yield Entry(usual.model_copy(update={"network": "ddpm-cifar10", "model": "trained"}), victims=3)
    known = usual.model_copy(update={"network": "128", "threat": KNOWN})
    yield Entry(known, ("residual-1000", "gidm-pixels"), victims=2)
    yield Entry(usual.model_copy(update={"network": OWN_NETWORK, "prediction_type": "v_prediction"}), victims=3)
    for dtype in ("float16", "bfloat16"):
        yield Entry(usual.model_copy(update={"model": "trained", "dtype": dtype}))
    for network in ("28-grey", "28-grey-deep"):
        yield Entry(usual.model_copy(update={"network": network, "images": "digits"}), victims=5)


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
    "labels": tuple(_labels()),
    "speed": tuple(_speed()),
    MAIN: tuple(_main()),
    SCALE: tuple(_scale()),
}
EVERYTHING = tuple(suite for suite in SUITES if suite not in ON_REQUEST)
