"""The benchmark of the attacks, from the options of its command to the list of measurements."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from attacks.registry import ATTACKS
from experiments.bench.attack_measurement import AttackMeasurement
from experiments.bench.benchmark import Plan
from experiments.bench.cases import CONTENDERS, NETWORKS, OWN_NETWORK, Contender
from experiments.bench.suites import EVERYTHING, SUITES, Entry
from experiments.checkpoint import BUNDLED, load_checkpoint
from fl_sim.config import SettingsError
from fl_sim.errors import nearest

_PUBLISHED_COST = 2


@dataclass(frozen=True)
class Options:
    """What to measure. Empty sequences mean everything; ``attacks`` replaces every suite's own contenders.

    Everything is all suites but ``main``, whose cases are theirs, and ``scale``, which takes long.
    """

    only: Sequence[str] = ()
    attacks: Sequence[str] = ()
    networks: Sequence[str] = ()
    victims: int | None = None
    quick: bool = False
    published: bool | None = None
    seed: int = 0
    device: str = "cpu"
    checkpoints: Sequence[Path] = ()


def make_plan(options: Options) -> Plan:
    """The measurements that the options ask for.

    The cheap attacks come first, of these the small networks, and every cell gets a victim before any gets the next: a
    benchmark that is stopped early has a bit of everything.

    Raises:
        SettingsError: if a suite, a network or a checkpoint is not there, or nothing is left to measure.
        AttackError: if an attack is not there.
    """
    suites = [_one_of("--only", name, SUITES) for name in options.only or EVERYTHING]
    networks = [_one_of("--networks", name, NETWORKS) for name in options.networks or NETWORKS]
    named = [CONTENDERS.get(name) or Contender(ATTACKS.find(name).name, name) for name in options.attacks]
    checkpoints = {"16": BUNDLED} | {_network_of(path): path for path in options.checkpoints}
    measurements: list[AttackMeasurement] = []
    left_out: list[str] = []
    for entry in (entry for suite in suites for entry in SUITES[suite] if entry.case.network in networks):
        contenders = list(_contenders(entry, named, options))
        if not contenders:
            continue
        network, trained = entry.case.network, entry.case.model == "trained"
        if network == OWN_NETWORK and find_spec("denoising_diffusion_pytorch") is None:
            left_out.append(f"network {network}: denoising-diffusion-pytorch is not installed, an extra of fl-sim")
            continue
        if trained and network not in checkpoints:
            reason = f"network {network}, trained: there is no checkpoint (--checkpoint FILE)"
            left_out += [] if reason in left_out else [reason]
            continue
        victims = options.victims or (entry.quick_victims if options.quick else entry.victims)
        checkpoint = checkpoints[network] if trained else None
        measurements += [
            AttackMeasurement(entry.case, contender, index, options.seed, options.device, checkpoint)
            for contender in contenders
            for index in range(victims)
        ]
    if not measurements:
        raise SettingsError("; ".join(["nothing to measure under these options", *left_out]))
    order = list(NETWORKS)
    measurements.sort(key=lambda each: (each.contender.cost, order.index(each.case.network), each.index))
    return Plan(measurements, left_out)


def _contenders(entry: Entry, named: Sequence[Contender], options: Options) -> Iterator[Contender]:
    if options.quick and not entry.quick:
        return
    published = options.published if options.published is not None else not options.quick
    for contender in named or [CONTENDERS[name] for name in _own_names(entry, options.quick, published)]:
        if contender.applies(entry.case):
            yield contender


def _own_names(entry: Entry, quick: bool, published: bool) -> list[str]:
    chosen = set(entry.quick if quick else entry.contenders)
    recipes = {name for name in entry.contenders if CONTENDERS[name].cost == _PUBLISHED_COST}
    chosen = chosen | recipes if published else chosen - recipes
    return [name for name in CONTENDERS if name in chosen]


def _network_of(path: Path) -> str:
    model = load_checkpoint(path).model
    for name, config in NETWORKS.items():
        if config == model:
            return name
    raise SettingsError(f"--checkpoint {path}: its model is none of the benchmark's; allowed: {', '.join(NETWORKS)}")


def _one_of(option: str, name: str, allowed: Mapping[str, object]) -> str:
    if name in allowed:
        return name
    raise SettingsError(f"{option} {name}: unknown; allowed: {', '.join(allowed)}{nearest(name, allowed)}")
