"""A run: from settings to the strategy, inside the curious server, to the tables and the report.

``federate`` is the one place where these meet: ``fl-sim run``, ``flwr run`` and the benchmarks go through it.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result
from rich.console import Console

from attacks.workers import AttackPool
from experiments.batch_trial import FirstBatch, try_first_batch
from experiments.experiment import Experiment, prepare
from experiments.headline import accuracy_line, headline
from experiments.inversion import invert_rounds
from experiments.inversion_table import read_inversions, summarise_inversions
from experiments.leakage import read_leakage
from experiments.progress import Progress, run_progress
from experiments.recorder import Recorder
from experiments.report import build_report
from experiments.run_directory import RunDirectory, check_empty_folder
from experiments.settings import ExperimentSettings, load_run
from fl_sim.client_app import build_client_app
from fl_sim.federation import AttackResources, check_resources, run_federation
from fl_sim.repeatable_grid import RepeatableGrid
from fl_sim.settings_file import dump_toml
from strategies.curious_peers import CuriousPeers
from strategies.gossip import Gossip
from strategies.honest_but_curious import HonestButCurious
from strategies.sink import DirectorySink, Sink


def launch(preset: str, overrides: Sequence[str], out: Path, console: Console, verbose: bool = False) -> None:
    """``fl-sim run``: launch a federation on Ray and the attacks on it; everything is written into ``out``.

    Raises:
        UserError: one line on what is wrong, before anything is written.
        FederationError: if the federation fails.
    """
    experiment, _ = _try_out(preset, overrides, out, verbose)
    settings = experiment.settings
    for line in experiment.describe():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    directory = RunDirectory.create(out, settings)
    with run_progress(experiment, console) as display:
        server_app = build_server_app(experiment, directory, display)
        run_federation(server_app, build_client_app(settings), settings, _attack_resources(settings), verbose)
    for part in headline(read_leakage(directory.leakage_csv), experiment.recipe.model):
        console.print(part, highlight=False)
    for line in accuracy_line(pd.read_parquet(directory.rounds)):
        console.print(line, highlight=False)
    for summary in summarise_inversions(read_inversions(directory.inversion)):
        console.print(summary.line(), highlight=False, soft_wrap=True)
    console.print(f"report: [bold]{directory.report}[/bold]", soft_wrap=True)


def dry_run(preset: str, overrides: Sequence[str], out: Path) -> None:
    """``fl-sim run --dry-run``: print what the run would do and its settings, and leave nothing behind.

    Raises:
        UserError: one line on what is wrong.
    """
    experiment, batch = _try_out(preset, overrides, out)
    tried = f"one batch: training loss {batch.loss:.4f}, a reply of {batch.size / 1e6:.1f} MB"
    # Comments, so that what is printed is a file that runs.
    print(*(f"# {line}" for line in (*experiment.describe(), tried)), "", dump_toml(experiment.settings), sep="\n")


def _try_out(preset: str, overrides: Sequence[str], out: Path, verbose: bool = False) -> tuple[Experiment, FirstBatch]:
    """Find out everything that can be found out before a run writes anything; Flower logs only if ``verbose``."""
    if not verbose:
        logging.getLogger("flwr").setLevel(logging.ERROR)
    check_empty_folder(out)
    experiment = prepare(load_run(preset, overrides))
    check_resources(experiment.settings, _attack_resources(experiment.settings))
    return experiment, try_first_batch(experiment)


def _attack_resources(settings: ExperimentSettings) -> AttackResources:
    return AttackResources(settings.attack.workers if settings.attack.names else 0, settings.attack.gpus_per_worker)


def build_server_app(experiment: Experiment, directory: RunDirectory, display: Progress) -> ServerApp:
    """The ServerApp that runs ``experiment``, attacks it, and writes everything into ``directory``."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _: Context) -> None:
        run_on(grid, experiment, directory, display)

    return server_app


def run_on(grid: Grid, experiment: Experiment, directory: RunDirectory, display: Progress) -> None:
    """Run ``experiment`` with its attacks on the clients of ``grid``, fill ``directory``, and build the report."""
    torch.set_num_threads(1)  # held-out losses repeat to the bit, and the clients keep their cores
    experiment = experiment.with_base(directory.base)
    repeatable = repeatable_grid(grid, experiment.settings)
    recorder = Recorder(experiment, directory, display, repeatable.rounds)
    sink = _attacking_sink(experiment.settings, directory, recorder, display, repeatable)
    with closing(recorder):
        federate(experiment, repeatable, sink, recorder.after_round)
    invert_rounds(experiment, directory, display)
    display.step("writing the report")
    build_report(directory.path)


def _attacking_sink(
    settings: ExperimentSettings, directory: RunDirectory, recorder: Recorder, display: Progress, grid: RepeatableGrid
) -> DirectorySink | None:
    """What takes the curious server's observations, its workers started; None where nobody attacks."""
    attack = settings.attack
    if not attack.names:
        return None
    pool = AttackPool(
        attack.workers,
        threads=attack.threads,
        gpus_per_worker=attack.gpus_per_worker,
        timeout=attack.timeout,
        queue_limit=attack.queue_limit,
    )
    sink = DirectorySink(
        directory.path, attack.arguments, pool, settings.seed, when=attack.when, on_reconstruction=recorder.after_attack
    )
    display.watch(pool.counts)
    grid.partitions()
    # The clients have answered, so Ray is up: workers import torch while the clients train.
    pool.warm_up()
    return sink


def repeatable_grid(grid: Grid, settings: ExperimentSettings) -> RepeatableGrid:
    """``grid`` as the settings have it: their seed, clients and timeout."""
    return RepeatableGrid(grid, settings.seed, settings.federation.clients, settings.federation.timeout)


def federate(
    experiment: Experiment,
    grid: RepeatableGrid,
    sink: Sink | None = None,
    after_round: Callable[[int, ArrayRecord], None] | None = None,
) -> Result:
    """Run all rounds of ``experiment`` on ``grid``; returns what Flower returns, the final weights among it.

    Args:
        experiment: has the strategy, the initial weights and how clients train.
        grid: its clients.
        sink: gets what a curious server, or curious peers, see of every reply; closed at the end. None: nobody looks.
        after_round: is called with each round's number and its global weights, with 0 and the initial ones at first.
    """
    federation = experiment.settings.federation
    strategy = experiment.strategy if sink is None else _curious(experiment, sink)
    return strategy.start(
        grid,
        ArrayRecord(experiment.travelling_weights),
        num_rounds=federation.rounds,
        timeout=federation.timeout,
        train_config=experiment.recipe.to_config(),
        evaluate_fn=after_round,
    )


def _curious(experiment: Experiment, sink: Sink) -> HonestButCurious:
    strategy, defence = experiment.strategy, experiment.disclosure()
    if isinstance(strategy, Gossip):
        return CuriousPeers(strategy, experiment.settings.federation.curious_peers, defence=defence, sink=sink)
    return HonestButCurious(strategy, defence=defence, sum_only=experiment.defence.sum_only, sink=sink)
