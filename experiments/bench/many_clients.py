"""The benchmark of many clients on a small machine: does it end, does its memory grow, do attacks delay it?

Federations without and with attacks take turns: one core for the only client process and the server,
one for the only attack worker, whose queue is full all the time. Rounds are compared from the fifth on.
"""

import math
import os
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from attacks.workers import AttackPool
from experiments.bench.benchmark import Benchmark, Measurement, Plan, Row, revisions
from experiments.bench.tables import Table
from experiments.experiment import Experiment, prepare
from experiments.launch import federate, repeatable_grid
from experiments.settings import ExperimentSettings
from fl_sim.client_app import build_client_app
from fl_sim.config import resolve
from fl_sim.federation import AttackResources, run_federation
from fl_sim.settings_file import load_settings
from strategies.sink import DirectorySink

SETTLED = 5
"""The first round that counts: by then everything is imported and every cache filled."""

QUEUE_LIMIT = 20
_ATTACK = "residual"


@dataclass(frozen=True)
class Round:
    """One round: which federation it belongs to, how long it took, and what the server's process held after it."""

    federation: int
    attacked: bool
    round: int
    seconds: float
    server_mb: float
    object_store_mb: float
    queued: int


@dataclass(frozen=True)
class PairMeasurement(Measurement):
    """Two federations on one Ray, the first without attacks and the second with."""

    clients: int
    clients_per_round: int
    rounds: int
    pair: int

    def subject(self) -> Row:
        """The federations, and which pair it is."""
        return asdict(self) | {"queue_limit": QUEUE_LIMIT}

    def prepare(self) -> Experiment:
        """A tiny network; one client process on a machine of two cores."""
        sizes = {"clients": self.clients, "clients_per_round": self.clients_per_round, "rounds": self.rounds}
        tree = {
            "federation": {**sizes, "client_cpus": 2},
            "model": {"checkpoint": "none", "block_out_channels": [8, 8], "norm_num_groups": 4},
            "data": {"partition": "photo"},
            "client": {"seed": 1, "batch_size": 2},
            "attack": {"name": _ATTACK},
        }
        return prepare(resolve(load_settings(ExperimentSettings, tree)))

    def measure(self) -> Row:
        """All rounds of both federations.

        ``load_before`` is how many other processes wanted to run: with as many as cores, times mean little.
        """
        load = os.getloadavg()[0]
        experiment = self.prepare()
        measured: list[Round] = []
        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, _: Context) -> None:
            torch.set_num_threads(1)
            for federation in (2 * self.pair, 2 * self.pair + 1):
                measured.extend(_federation(experiment, grid, federation))

        settings = experiment.settings
        run_federation(server_app, build_client_app(settings), settings, AttackResources(1))
        return {"load_before": load, "measured": [asdict(entry) for entry in measured]}


def bench_many_clients(clients: int, per_round: int, rounds: int, turns: int, out: Path, console: Console) -> None:
    """Measure ``turns`` pairs of federations, without attacks and with; ``out`` gets many-clients.json and .md.

    Raises:
        SettingsError: if ``out`` holds something else, or more clients are to train in a round than there are.
    """
    sizes = {"clients": clients, "clients_per_round": per_round, "rounds": rounds}
    plan = [PairMeasurement(**sizes, pair=pair) for pair in range(turns)]
    plan[0].prepare()
    BENCHMARK.run(Plan(plan), sizes | {"turns": turns}, out, 1, console)


def summarise(measured: Sequence[Round]) -> dict[str, Any]:
    """The figures of all rounds from the fifth on.

    ``slowdown`` is the mean time of an attacked round over that of one without, less 1, its standard error that over
    pairs of neighbouring federations (rounds of one federation are alike), None of a single pair; ``memory_growth_mb``
    the most that the server's process grew, in any federation, from the fifth round to a later one.
    """
    settled = [entry for entry in measured if entry.round >= SETTLED]
    alone, attacked = ([entry.seconds for entry in settled if entry.attacked == kind] for kind in (False, True))
    federations: dict[int, list[Round]] = {}
    for entry in settled:
        federations.setdefault(entry.federation, []).append(entry)
    means = {number: statistics.fmean(entry.seconds for entry in of_one) for number, of_one in federations.items()}
    longer = [means[number + 1] - means[number] for number in means if number % 2 == 0]
    error = statistics.stdev(longer) / math.sqrt(len(longer)) if len(longer) > 1 else None
    growth = [max(entry.server_mb for entry in of_one) - of_one[0].server_mb for of_one in federations.values()]
    return {
        "rounds_finished": len(measured),
        "seconds_alone": statistics.fmean(alone),
        "seconds_attacked": statistics.fmean(attacked),
        "slowdown": statistics.fmean(attacked) / statistics.fmean(alone) - 1,
        "slowdown_standard_error": error and error / statistics.fmean(alone),
        "memory_growth_mb": max(growth),
        "server_mb_at_the_end": measured[-1].server_mb,
        "object_store_mb_at_most": max(entry.object_store_mb for entry in settled),
        "queued_at_most": max(entry.queued for entry in measured),
    }


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    measured = [Round(**entry) for row in rows for entry in row["measured"]]
    return summarise(measured) if measured else {}


def _tables(rows: Sequence[Row]) -> list[Table]:
    shown = [(name.replace("_", " "), f"{value:.4g}") for name, value in _figures(rows).items() if value is not None]
    return [Table("many-clients", ("figure", "value"), [*shown, ("revision", "; ".join(revisions(rows)))])]


def _announce(row: Row) -> str:
    found = _figures([row])
    return f"pair {row['pair']}: {found['seconds_alone']:.2f} s a round, {found['seconds_attacked']:.2f} s attacked"


BENCHMARK = Benchmark("many-clients", "pairs of federations", _announce, _figures, _tables)


def _federation(experiment: Experiment, grid: Grid, number: int) -> list[Round]:
    settings = experiment.settings
    attacked = number % 2 == 1
    repeatable = repeatable_grid(grid, settings)
    measured: list[Round] = []
    repeatable.partitions()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, _idle_pool() as pool:
        started = time.perf_counter()

        def after_round(server_round: int, _: ArrayRecord) -> None:
            nonlocal started
            if server_round > 0:
                seconds, memory = time.perf_counter() - started, (resident_mb(), _object_store_mb())
                measured.append(Round(number, attacked, server_round, seconds, *memory, pool.counts().queued))
            started = time.perf_counter()

        sink = None
        if attacked:
            sink = _Abandoning(Path(folder), {_ATTACK: {}}, pool, settings.seed, on_reconstruction=_say_nothing)
        federate(experiment, repeatable, sink, after_round)
    return measured


def _say_nothing(*_: Any) -> None:
    """Most attacks are skipped, as the queue is full; a line for each would hide the rounds."""


class _Abandoning(DirectorySink):
    """Ends with the last round, whatever is still queued."""

    def drain(self) -> None:
        """Wait for nothing."""


@contextmanager
def _idle_pool() -> Iterator[AttackPool]:
    """A pool whose only worker has started: in the other federations it is there as well, and has nothing to do."""
    pool = AttackPool(1, queue_limit=QUEUE_LIMIT)
    pool.warm_up()
    while not any(title.startswith("AttackWorker") for title in _alive_actors()):
        time.sleep(0.5)
    try:
        yield pool
    finally:
        pool.close()


def _alive_actors() -> list[str]:
    states = ray._private.state.actors().values()
    return [actor["ActorClassName"] for actor in states if actor["State"] == "ALIVE"]


def resident_mb() -> float:
    """Of this process, which is the server's (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def _object_store_mb() -> float:
    key = "object_store_memory"
    return (ray.cluster_resources()[key] - ray.available_resources().get(key, 0.0)) / 1e6
