"""A run: from settings to the strategy, inside the curious server, to the tables and the report.

``federate`` is the one place where these meet: ``fl-sim run``, ``flwr run`` and the benchmarks go through it.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result
from rich.console import Console

from attacks.workers import AttackPool
from experiments.batch_trial import FirstBatch, try_first_batch
from experiments.callbacks import Callback
from experiments.chance_table import save_chance
from experiments.commands import attack_command, bold_path
from experiments.estimate import estimate
from experiments.experiment import Experiment, prepare
from experiments.headline import accuracy_line, headline
from experiments.inversion import invert_rounds
from experiments.inversion_table import read_inversions, summarise_inversions
from experiments.leakage import read_leakage
from experiments.nodes import check_nodes
from experiments.progress import Progress, run_progress
from experiments.recorder import Recorder
from experiments.report import build_report
from experiments.run_directory import RunDirectory, check_empty_folder
from experiments.run_state import Earlier, take_up
from experiments.seen_updates import is_attacked, is_captured, seen_updates
from experiments.settings import ExperimentSettings, Source, load_run
from fl_sim.client_app import build_client_app
from fl_sim.config import SettingsError
from fl_sim.federation import AttackResources, check_resources, run_federation
from fl_sim.repeatable_grid import RepeatableGrid
from fl_sim.settings_file import dump_toml
from strategies.continued import Continued
from strategies.curious_peers import CuriousPeers
from strategies.errors import StrategyError
from strategies.gossip import Gossip
from strategies.honest_but_curious import HonestButCurious
from strategies.sink import DirectorySink, Sink


def launch(
    source: Source,
    overrides: Sequence[str],
    out: Path,
    console: Console,
    verbose: bool = False,
    callbacks: Sequence[Callback] = (),
) -> None:
    """``fl-sim run``: launch a federation on Ray and the attacks on it; everything is written into ``out``.

    Raises:
        UserError: one line on what is wrong, before anything is written.
        FederationError: if the federation fails.
    """
    experiment, _ = _try_out(source, overrides, out, verbose)
    for line in experiment.describe():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    directory = RunDirectory.create(out, experiment.settings)
    try:
        with directory.locked():
            _run(experiment, directory, None, console, verbose, callbacks)
    except SettingsError:  # of a Ray cluster, which tells what it has only once it is joined
        directory.take_back()
        raise


def resume(out: Path, console: Console, verbose: bool = False, callbacks: Sequence[Callback] = ()) -> None:
    """``fl-sim run --resume``: go on with the run in ``out`` after its last finished round, and end it.

    Raises:
        UserError: one line on what is wrong; the run directory is as it was.
        FederationError: if the federation fails.
    """
    directory = RunDirectory.open(out)
    with directory.locked():
        if directory.ended:
            directory.progress.unlink(missing_ok=True)  # of a run that was killed after all was done
            console.print(f"the run has ended; report: {bold_path(directory.report)}", soft_wrap=True)
            return
        experiment = check(str(directory.config), (), verbose)
        attacked = partial(is_attacked, experiment.settings)
        earlier, rounds = (
            take_up(directory, partial(seen_updates, experiment), attacked),
            experiment.settings.federation.rounds,
        )
        console.print(f"going on after round {earlier.rounds} of {rounds}; {len(earlier.ended)} attacks had ended")
        _run(experiment, directory, earlier, console, verbose, callbacks)


def _run(
    experiment: Experiment,
    directory: RunDirectory,
    earlier: Earlier | None,
    console: Console,
    verbose: bool,
    callbacks: Sequence[Callback],
) -> None:
    """Run the federation and the attacks to the end, and print what came out."""
    settings = experiment.settings
    with run_progress(experiment, directory, console) as display:
        if earlier is not None:
            rounds = earlier.state.rounds if earlier.state else ()
            display.go_on([entry.row() for entry in rounds], earlier.leakage)
        server_app = build_server_app(experiment, directory, display, earlier, callbacks)
        client_app, resources = build_client_app(settings), _attack_resources(settings)
        check_cluster = partial(check_nodes, experiment.with_base(directory.base), directory.base)
        run_federation(server_app, client_app, settings, resources, verbose, check_cluster)
    for part in headline(read_leakage(directory.leakage_csv), experiment.recipe.model):
        console.print(part, highlight=False)
    for line in accuracy_line(pd.read_parquet(directory.rounds)):
        console.print(line, highlight=False)
    for summary in summarise_inversions(read_inversions(directory.inversion)):
        console.print(summary.line(), highlight=False, soft_wrap=True)
    if settings.attack.names and not settings.attack.in_run:
        command = attack_command(directory.path, settings.model.factory)
        console.print(f"captured, not attacked; to attack: {command}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {bold_path(directory.report)}", soft_wrap=True)


def dry_run(preset: str, overrides: Sequence[str], out: Path) -> None:
    """``fl-sim run --dry-run``: print what the run would do and its settings, and leave nothing behind.

    Raises:
        UserError: one line on what is wrong.
    """
    experiment, batch = _try_out(preset, overrides, out)
    tried = f"one batch: training loss {batch.loss:.4f}, a reply of {batch.size / 1e6:.1f} MB"
    seed = "client.seed was drawn just now: with it in the file a run repeats, without it every run draws another one"
    # Comments, so that what is printed is a file that runs.
    takes = f"takes about {estimate(experiment)}"
    print(*(f"# {line}" for line in (*experiment.describe(), tried, takes, seed)), sep="\n")
    print("", dump_toml(experiment.settings), sep="\n")


def _try_out(
    source: Source,
    overrides: Sequence[str],
    out: Path,
    verbose: bool = False,
) -> tuple[Experiment, FirstBatch]:
    """Find out everything that can be found out before a run writes anything; Flower logs only if ``verbose``."""
    check_empty_folder(out)
    experiment = check(source, overrides, verbose)
    return experiment, try_first_batch(experiment)


def check(source: Source, overrides: Sequence[str], verbose: bool = False) -> Experiment:
    """Build the experiment, and see that this machine has what it needs; UserError if something is wrong."""
    if not verbose:
        logging.getLogger("flwr").setLevel(logging.ERROR)
    experiment = prepare(load_run(source, overrides))
    check_resources(experiment.settings, _attack_resources(experiment.settings))
    return experiment


def _attack_resources(settings: ExperimentSettings) -> AttackResources:
    return AttackResources(settings.attack.workers if settings.attack.in_run else 0, settings.attack.gpus_per_worker)


def build_server_app(
    experiment: Experiment,
    directory: RunDirectory,
    display: Progress,
    earlier: Earlier | None = None,
    callbacks: Sequence[Callback] = (),
) -> ServerApp:
    """The ServerApp that runs ``experiment``, attacks it, and writes everything into ``directory``."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _: Context) -> None:
        run_on(grid, experiment, directory, display, earlier, callbacks)

    return server_app


def run_on(
    grid: Grid,
    experiment: Experiment,
    directory: RunDirectory,
    display: Progress,
    earlier: Earlier | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Run ``experiment`` with its attacks on the clients of ``grid``, fill ``directory``, and build the report.

    ``earlier`` is what a run that was broken off left there; this one goes on from it, with the strategy of
    ``experiment`` as it was.
    """
    torch.set_num_threads(1)  # held-out losses repeat to the bit, and the clients keep their cores
    experiment = experiment.with_base(directory.base)
    repeatable = repeatable_grid(grid, experiment.settings)
    state = None if earlier is None else earlier.state
    if state is not None:
        repeatable.rounds.extend(state.logs)
    recorder = Recorder(experiment, directory, display, repeatable.rounds, earlier, callbacks)
    sink = _attacking_sink(experiment.settings, directory, recorder, display, repeatable, earlier)
    strategy = server_strategy(experiment, sink, 0 if state is None else state.round)
    if state is not None:
        state.restore(strategy)

    def after_round(server_round: int, arrays: ArrayRecord) -> None:
        recorder.after_round(server_round, arrays)
        _keep_state(directory, strategy, recorder, arrays, display)

    with closing(recorder):
        run_rounds(experiment, repeatable, strategy, after_round, None if state is None else state.arrays)
    invert_rounds(experiment, directory, display)
    display.step("comparing with chance")
    save_chance(directory, experiment.settings, experiment.recipe)
    display.step("writing the report")
    build_report(directory.path)
    directory.state.unlink(missing_ok=True)


def _keep_state(
    directory: RunDirectory, strategy: Continued, recorder: Recorder, arrays: ArrayRecord, display: Progress
) -> None:
    """Keep what it takes to go on after the round that has just been recorded, once its captures are written."""
    try:
        save = partial(recorder.state(arrays, strategy).save, directory.state)
    except StrategyError as error:
        display.step(f"this run could not be resumed: {error}")
        return
    if isinstance(strategy, HonestButCurious):
        strategy.after_observing(save)
    else:
        save()


def _attacking_sink(
    settings: ExperimentSettings,
    directory: RunDirectory,
    recorder: Recorder,
    display: Progress,
    grid: RepeatableGrid,
    earlier: Earlier | None,
) -> DirectorySink | None:
    """What takes the curious server's observations, its workers started if they are to attack; None: nobody looks."""
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
        directory.path,
        attack.arguments,
        pool,
        settings.seed,
        when=attack.when,
        on_reconstruction=recorder.after_attack,
        ended=None if earlier is None else earlier.ended,
        chosen=partial(is_attacked, settings),
        capture=attack.capture,
        max_disk=attack.max_disk,
        say=partial(display.say, in_terminal=True),
    )
    if attack.in_run:
        display.watch(pool.counts)
        grid.partitions()
        # The clients have answered, so Ray is up: workers import torch while the clients train.
        pool.warm_up()
    if earlier is not None:
        sink.attack_the_rest()
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
    return run_rounds(experiment, grid, server_strategy(experiment, sink), after_round)


def run_rounds(
    experiment: Experiment,
    grid: RepeatableGrid,
    strategy: Continued,
    after_round: Callable[[int, ArrayRecord], None] | None = None,
    arrays: ArrayRecord | None = None,
) -> Result:
    """Run the rounds that are left, as ``federate`` does; ``arrays`` are the weights after those before."""
    federation, before = experiment.settings.federation, strategy.rounds_before

    def evaluate(server_round: int, weights: ArrayRecord) -> None:
        if after_round is not None and (server_round or not before):
            after_round(before + server_round, weights)

    return strategy.start(
        grid,
        ArrayRecord(experiment.travelling_weights) if arrays is None else arrays,
        num_rounds=federation.rounds - before,
        timeout=federation.timeout,
        train_config=experiment.recipe.to_config(),
        evaluate_fn=evaluate,
    )


def server_strategy(experiment: Experiment, sink: Sink | None, rounds_before: int = 0) -> Continued:
    """The strategy of the run as the server has it: curious, if there is a ``sink`` for what it sees."""
    strategy, defence = experiment.strategy, experiment.disclosure()
    if sink is None:
        return Continued(strategy, rounds_before)
    observes = partial(is_captured, experiment.settings)
    seeing: dict[str, Any] = {"defence": defence, "sink": sink, "rounds_before": rounds_before, "observes": observes}
    if isinstance(strategy, Gossip):
        return CuriousPeers(strategy, experiment.settings.federation.curious_peers, **seeing)
    return HonestButCurious(strategy, sum_only=experiment.defence.sum_only, **seeing)
