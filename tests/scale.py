"""How a federation grows: start-up with the number of clients, the time of a round with the clients that train in it,
memory and time of many rounds, and large updates.

``python -m tests.scale --out build/scale.json`` runs all of it and writes the figures as JSON; ``--only`` and the sizes
make it shorter. Every measurement is a process of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from experiments.bench.many_clients import resident_mb
from experiments.experiment import Experiment, prepare
from experiments.launch import build_server_app, federate, repeatable_grid
from experiments.progress import Progress, run_progress
from experiments.rounds import Round
from experiments.run_directory import RunDirectory, environment
from experiments.settings import load_run
from fl_sim.client_app import build_client_app
from fl_sim.federation import AttackResources, run_federation
from strategies.honest_but_curious import HonestButCurious

SETTLED = 5
"""The first round that counts: by then everything is imported and every cache filled."""

TINY: dict[str, Any] = {
    "client.seed": 1,
    "client.batch_size": 2,
    "data.partition": "photo",
    "federation.client_cpus": 2,
    "model.checkpoint": "none",
    "model.block_out_channels": [8, 8],
    "model.norm_num_groups": 4,
    "utility.every": 0,
}


def start_up(clients: int) -> dict[str, Any]:
    """Seconds until the settings are checked, until a first client has answered, and the server's memory then."""
    began = time.perf_counter()
    sizes = {"federation.clients": clients, "federation.clients_per_round": 1, "federation.rounds": 2}
    experiment = prepare(load_run({**TINY, **sizes, "attack.name": "none"}))
    lines = experiment.describe()
    checked = time.perf_counter()
    ends: list[float] = []

    def work(grid: Grid) -> None:
        federate(
            experiment, repeatable_grid(grid, experiment.settings), None, lambda *_: ends.append(time.perf_counter())
        )

    _on_ray(experiment, work)
    return {
        "clients": clients,
        "seconds_to_check": checked - began,
        "seconds_to_first_round": ends[1] - checked,
        "seconds_of_second_round": ends[2] - ends[1],
        "server_mb": resident_mb(),
        "longest_line": max(map(len, lines)),
    }


def rounds(clients: int, per_round: int, number: int, attacked: bool) -> dict[str, Any]:
    """A run of so many rounds as ``fl-sim run`` does it: seconds and memory of every round."""
    sizes = {"federation.clients": clients, "federation.clients_per_round": per_round, "federation.rounds": number}
    attack: dict[str, Any] = {"attack.name": "none"}
    if attacked:
        attack = {
            "attack.name": "residual",
            "attack.workers": 1,
            "attack.queue_limit": 20,
            "attack.capture": "attacked",
        }
        attack["attack.args.residual.max_evaluations"] = 40
    experiment = prepare(load_run({**TINY, **sizes, **attack}))
    measured: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory.create(Path(folder) / "run", experiment.settings)
        with run_progress(experiment, directory, Console(quiet=True)) as display:
            _tell_rounds(display, lambda seconds: measured.append({"seconds": seconds, "server_mb": resident_mb()}))
            app = build_server_app(experiment, directory, display)
            settings = experiment.settings
            resources = AttackResources(1) if attacked else AttackResources()
            run_federation(app, build_client_app(settings), settings, resources)
        files = [path for path in directory.path.rglob("*") if path.is_file()]
        written = sum(path.stat().st_size for path in files)
    settled = measured[SETTLED - 1 :]
    return {
        "clients": clients,
        "clients_per_round": per_round,
        "attacked": attacked,
        "seconds_a_round": statistics.median(entry["seconds"] for entry in settled),
        "memory_growth_mb": settled[-1]["server_mb"] - settled[0]["server_mb"],
        "server_mb": settled[-1]["server_mb"],
        "bytes_written": written,
        "rounds": measured,
    }


def _tell_rounds(display: Progress, tell: Callable[[float], object]) -> None:
    """From now on ``tell`` after every round how many seconds it took."""
    shown, last = display.round_done, [time.perf_counter()]

    def note(finished: Round) -> None:
        shown(finished)
        now = time.perf_counter()
        tell(now - last[0])
        last[0] = now

    display.round_done = note  # type: ignore[method-assign]


def updates(clients: int, number: int, widths: list[int]) -> dict[str, Any]:
    """A large network, whose updates are captured and not attacked: memory, bytes, and what interception takes.

    Interception is what the curious server adds to aggregation, for which the round waits; it includes the wait for
    captures of the round before that are still being written.
    """
    network = {"model.block_out_channels": widths, "model.layers_per_block": 2, "model.norm_num_groups": 8}
    sizes = {"federation.clients": clients, "federation.clients_per_round": clients, "federation.rounds": number}
    attack = {"attack.name": "dlg", "attack.when": "never"}
    experiment = prepare(
        load_run({**TINY, **network, **sizes, **attack, "client.batch_size": 1, "data.image_size": 32})
    )
    seconds: dict[str, list[float]] = {"aggregate": [], "inner": [], "rounds": []}
    _time(HonestButCurious, "aggregate_train", seconds["aggregate"])
    _time(type(experiment.strategy), "aggregate_train", seconds["inner"])
    peaks: dict[str, float] = {}
    stopped = threading.Event()
    watching = threading.Thread(target=_watch_memory, args=(peaks, stopped), daemon=True)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory.create(Path(folder) / "run", experiment.settings)
        with run_progress(experiment, directory, Console(quiet=True)) as display:
            _tell_rounds(display, seconds["rounds"].append)
            before = resident_mb()
            watching.start()
            app = build_server_app(experiment, directory, display)
            run_federation(app, build_client_app(experiment.settings), experiment.settings)
        stopped.set()
        written = sum(path.stat().st_size for path in directory.captures.iterdir())
    parameters = sum(value.numel() for value in experiment.weights.values())
    extra = [whole - inner for whole, inner in zip(seconds["aggregate"], seconds["inner"], strict=True)]
    return {
        "parameters": parameters,
        "update_mb": parameters * 4 / 1e6,
        "clients": clients,
        "server_mb_before": before,
        "server_peak_mb": peaks["server"],
        "server_own_peak_mb": peaks["own"],
        "updates_in_server": (peaks["server"] - before) / (parameters * 4 / 1e6),
        "own_updates_in_server": (peaks["own"] - before) / (parameters * 4 / 1e6),
        "largest_worker_mb": peaks["worker"],
        "capture_bytes": written,
        "seconds": seconds,
        "interception_share": sum(extra[1:]) / sum(seconds["rounds"][1:]),
    }


def _time(cls: type, name: str, into: list[float]) -> None:
    """Note how long every call of a method takes."""
    method = getattr(cls, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            into.append(time.perf_counter() - began)

    setattr(cls, name, timed)


def _watch_memory(peaks: dict[str, float], stopped: threading.Event) -> None:
    """The most that this process, and the largest of those that it started, held; "own": without Ray's object store."""
    own = psutil.Process()
    while not stopped.wait(0.05):
        memory = own.memory_info()
        peaks["server"] = max(peaks.get("server", 0.0), memory.rss / 1e6)
        peaks["own"] = max(peaks.get("own", 0.0), (memory.rss - memory.shared) / 1e6)
        with suppress(psutil.Error):  # one has ended meanwhile
            workers = [p.memory_info().rss / 1e6 for p in own.children(recursive=True) if "ray::" in p.name()]
            peaks["worker"] = max(peaks.get("worker", 0.0), *workers, 0.0)


def _on_ray(experiment: Experiment, work: Callable[[Grid], None]) -> None:
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _: Context) -> None:
        work(grid)

    run_federation(server_app, build_client_app(experiment.settings), experiment.settings)


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "start-up": start_up,
    "sampled": rounds,
    "rounds": rounds,
    "updates": updates,
}


def measure(kind: str, *arguments: Any) -> dict[str, Any]:
    """One measurement in a process of its own, whose memory nothing else has touched."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
        surroundings = os.environ | {"RAY_TMPDIR": short, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.scale", "--measure", json.dumps([kind, *arguments])]
        done = subprocess.run(command, env=surroundings, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(
    only: Annotated[list[str], typer.Option(help=f"One of: {', '.join(MEASUREMENTS)}; may be repeated.")] = [],  # noqa: B006
    clients: Annotated[int, typer.Option(help="Clients of the federation of many rounds.")] = 1000,
    per_round: Annotated[int, typer.Option(help="Clients that train in a round of it.")] = 50,
    number: Annotated[int, typer.Option("--rounds", help="Its rounds.")] = 100,
    start: Annotated[list[int], typer.Option(help="Clients of a federation that starts.")] = [100, 1000, 10_000],  # noqa: B006
    sampled: Annotated[list[int], typer.Option(help="Clients a round of short federations.")] = [10, 25, 100],  # noqa: B006
    updating: Annotated[int, typer.Option(help="Clients that send large updates.")] = 8,
    widths: Annotated[str, typer.Option(help="Channels of the large network, as JSON.")] = "[128, 256, 384, 512]",
    out: Annotated[Path, typer.Option(help="The file for the figures.")] = Path("build/scale.json"),
    measurement: Annotated[str | None, typer.Option("--measure", hidden=True)] = None,
) -> None:
    """Measure how a federation grows, and write the figures as JSON."""
    if measurement is not None:
        kind, *arguments = json.loads(measurement)
        print(json.dumps(MEASUREMENTS[kind](*arguments)))
        return
    plan: list[tuple[Any, ...]] = [
        *(("start-up", size) for size in start),
        *(("sampled", clients, each, SETTLED + 5, False) for each in sampled),
        *(("rounds", clients, per_round, number, attacked) for attacked in (False, True)),
        ("updates", updating, 5, json.loads(widths)),
    ]
    figures = []
    for kind, *arguments in plan:
        if not only or kind in only:
            figures.append({"kind": kind, "load_before": os.getloadavg()[0]} | measure(kind, *arguments))
            shown = {name: value for name, value in figures[-1].items() if isinstance(value, int | float | str)}
            print(json.dumps(shown))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"environment": environment(), "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
