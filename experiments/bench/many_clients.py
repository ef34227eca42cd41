"""A federation of many clients on a small machine: does it end, does its memory grow, do attacks hold up its rounds?

Federations with and without attacks take turns on the same Ray: one core for the only client process and the server,
one for the only attack worker, whose queue is full all the time. Rounds are compared from the fifth on.
"""

import json
import math
import os
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from attacks.workers import AttackPool
from experiments.bench.measuring import device_name
from experiments.experiment import Experiment, prepare
from experiments.run import federate, repeatable_grid
from experiments.run_directory import environment, make_empty_folder
from experiments.settings import ExperimentSettings
from fl_sim.client_app import build_client_app
from fl_sim.config import load_settings, resolve
from fl_sim.federation import AttackResources, run_federation
from fl_sim.files import write_atomically
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


def bench_many_clients(clients: int, per_round: int, rounds: int, turns: int, out: Path, console: Console) -> None:
    """Measure ``turns`` pairs of federations, without attacks and with; ``out`` gets many-clients.json.

    ``load_before`` in it is the number of other processes that wanted to run: with as many as cores, times mean little.

    Raises:
        SettingsError: if ``out`` is not an empty folder, or more clients are to train in a round than there are.
    """
    experiment = prepare(_settings(clients, per_round, rounds))
    make_empty_folder(out)
    load = os.getloadavg()[0]
    measured: list[Round] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _: Context) -> None:
        torch.set_num_threads(1)
        for federation in range(2 * turns):
            for entry in _federation(experiment, grid, federation, out):
                measured.append(entry)
                kind = "attacked" if entry.attacked else "alone"
                console.print(f"federation {federation} ({kind}), round {entry.round}: {entry.seconds:.2f} s")

    settings = experiment.settings
    run_federation(server_app, build_client_app(settings), settings, AttackResources(1))
    figures = summarise(measured)
    options = {"clients": clients, "clients_per_round": per_round, "rounds": rounds, "turns": turns}
    about = environment() | {
        "device": device_name("cpu"),
        "options": options,
        "queue_limit": QUEUE_LIMIT,
        "load_before": load,
    }
    content = {"about": about, "figures": figures, "rounds": [asdict(entry) for entry in measured]}
    write_atomically(out / "many-clients.json", lambda file: file.write_text(json.dumps(content, indent=1) + "\n"))
    console.print_json(data=figures)


def summarise(measured: list[Round]) -> dict[str, Any]:
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


def _settings(clients: int, per_round: int, rounds: int) -> ExperimentSettings:
    """A tiny network; one client process on a machine of two cores."""
    tree = {
        "federation": {"clients": clients, "clients_per_round": per_round, "rounds": rounds, "client_cpus": 2},
        "model": {"checkpoint": "none", "block_out_channels": [8, 8], "norm_num_groups": 4},
        "data": {"partition": "photo"},
        "client": {"seed": 1, "batch_size": 2},
        "attack": {"name": _ATTACK},
    }
    return resolve(load_settings(ExperimentSettings, tree))


def _federation(experiment: Experiment, grid: Grid, number: int, out: Path) -> Iterator[Round]:
    settings = experiment.settings
    attacked = number % 2 == 1
    repeatable = repeatable_grid(grid, settings)
    measured: list[Round] = []
    repeatable.partitions()
    with _idle_pool() as pool:
        started = time.perf_counter()

        def after_round(server_round: int, _: ArrayRecord) -> None:
            nonlocal started
            if server_round > 0:
                seconds, memory = time.perf_counter() - started, (_resident_mb(), _object_store_mb())
                measured.append(Round(number, attacked, server_round, seconds, *memory, pool.counts().queued))
            started = time.perf_counter()

        sink = None
        if attacked:
            folder = out / f"federation-{number}"
            sink = _Abandoning(folder, {_ATTACK: {}}, pool, settings.seed, on_reconstruction=_say_nothing)
        federate(experiment, repeatable, sink, after_round)
    yield from measured


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


def _resident_mb() -> float:
    """Of this process, which is the server's (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def _object_store_mb() -> float:
    key = "object_store_memory"
    return (ray.cluster_resources()[key] - ray.available_resources().get(key, 0.0)) / 1e6
