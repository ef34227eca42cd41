"""The composition root: the ServerApp in which a curious server wraps the strategy and an evaluator keeps score."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache, partial
from hashlib import sha256
from statistics import fmean
from typing import Any

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.observation import DefenceDisclosure, UpdateId
from attacks.workers import AttackPool
from experiments import metrics
from experiments.checkpoint import Checkpoint, save_checkpoint
from experiments.dry_run import try_first_batch
from experiments.experiment import Experiment, prepare
from experiments.leakage import Evaluator, LeakageTable
from experiments.pictures import save_grid
from experiments.progress import Progress
from experiments.report import build_report
from experiments.rounds import Round, save_rounds
from experiments.run_directory import RunDirectory
from experiments.settings import load_run
from experiments.utility import Utility
from fl_sim.config import SettingsError, flower_run_directory
from fl_sim.defences.privacy import Privacy
from fl_sim.files import write_atomically
from fl_sim.images.partition import partition
from fl_sim.repeatable_grid import FederationError, RepeatableGrid, RoundLog
from fl_sim.wire import whole_model
from strategies.curious_peers import CuriousPeers
from strategies.ema import WeightAverage
from strategies.gossip import Gossip
from strategies.honest_but_curious import HonestButCurious
from strategies.sink import DirectorySink


def build_server_app(experiment: Experiment, directory: RunDirectory, display: Progress) -> ServerApp:
    """The ServerApp that runs ``experiment``, attacks it, and writes everything into ``directory``."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _: Context) -> None:
        _Run(experiment, directory, display, grid).go()

    return server_app


class _Run:
    """One run: the federation, the attacks beside it, and the tables that grow meanwhile."""

    def __init__(self, experiment: Experiment, directory: RunDirectory, display: Progress, grid: Grid) -> None:
        settings = experiment.settings
        self._experiment, self._directory, self._display = experiment, directory, display
        self._grid = RepeatableGrid(grid, settings.seed, settings.federation.clients, settings.federation.timeout)
        self._rounds: list[Round] = []
        self._leakage = LeakageTable(directory.leakage_csv, directory.leakage_parquet)
        self._evaluator = Evaluator(directory.run_name(), settings, experiment.recipe)
        self._utility = Utility(settings, experiment.recipe)
        base = {"base": str(directory.base.resolve())} if experiment.recipe.partial else {}
        self._recipe = experiment.recipe.model_copy(update=base)
        decay = settings.strategy.ema
        self._average = None if decay is None else WeightAverage(decay)

    def go(self) -> None:
        torch.set_num_threads(1)  # held-out losses repeat to the bit, and the clients keep their cores
        not_computed = metrics.unavailable() | self._utility.not_computed()
        self._directory.write_environment(not_computed, metrics.DEFINITIONS)
        strategy = self._experiment.strategy
        if self._experiment.settings.attack.names:
            strategy = self._curious()
        try:
            strategy.start(
                self._grid,
                ArrayRecord(self._travelling_weights()),
                num_rounds=self._experiment.settings.federation.rounds,
                timeout=self._experiment.settings.federation.timeout,
                train_config=self._recipe.to_config(),
                evaluate_fn=self._after_round,
            )
        finally:
            self._leakage.close()
            save_rounds(self._directory.rounds, self._rounds, self._leakage.frame())
        self._display.step("writing the report")
        build_report(self._directory.path)

    def _curious(self) -> HonestButCurious:
        settings = self._experiment.settings
        attack = settings.attack
        pool = AttackPool(
            attack.workers,
            threads=attack.threads,
            gpus_per_worker=attack.gpus_per_worker,
            timeout=attack.timeout,
            queue_limit=attack.queue_limit,
        )
        sink = DirectorySink(
            self._directory.path,
            attack.arguments,
            pool,
            settings.seed,
            when=attack.when,
            on_reconstruction=self._after_attack,
        )
        self._display.watch(pool.counts)
        self._grid.partitions()
        # The clients have answered, so Ray is up: workers import torch while the clients train.
        pool.warm_up()
        defence = self._experiment.defence
        told = defence.disclosure(self._recipe) if attack.knows_defence else {}
        strategy = self._experiment.strategy
        known: dict[str, Any] = {"defence": DefenceDisclosure(**told) if told else None, "sink": sink}
        if isinstance(strategy, Gossip):
            return CuriousPeers(strategy, settings.federation.curious_peers, **known)
        return HonestButCurious(strategy, sum_only=defence.sum_only, **known)

    def _after_attack(self, update_id: UpdateId, attack: str, result: Reconstruction | str) -> None:
        summed = self._grid.rounds[update_id.round - 1].replied if update_id.client < 0 else ()
        rows = self._evaluator.rows(update_id.round, update_id.client, attack, result, update_id.observer, summed)
        self._leakage.append(rows)
        self._display.attacked(rows)

    def _after_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Flower calls this with the new global weights, and once before the first round."""
        weights = whole_model(self._recipe, arrays.to_torch_state_dict())
        if self._average is not None:
            self._average.update(weights)
        utility = self._utility.loss(weights) if self._utility.due(server_round) else {}
        if server_round == 0:
            self._keep_initial(weights, utility)
            self._display.step("training round 1")
            return
        if server_round == self._experiment.settings.federation.rounds:
            utility |= self._keep_final(server_round, weights)
        if len(self._grid.rounds) < server_round:
            raise FederationError(f"round {server_round}: the strategy asked no client to train")
        spent = privacy_spent(self._experiment, self._grid.rounds)
        finished = _round(self._grid.rounds[-1], arrays, spent, utility)
        self._rounds.append(finished)
        self._leakage.save()
        save_rounds(self._directory.rounds, self._rounds, self._leakage.frame())
        self._display.round_done(finished)

    def _travelling_weights(self) -> dict[str, Tensor]:
        """The initial weights that the strategy gets; where these are a part of the model, the whole is written."""
        weights = self._experiment.weights
        if not self._recipe.partial:
            return weights
        write_atomically(self._directory.base, lambda file: save_file(weights, file))
        return {name: weights[name] for name in self._recipe.trained_names()}

    def _keep_initial(self, weights: dict[str, Tensor], utility: dict[str, float]) -> None:
        """Write how good the model is that the run starts from."""
        if self._utility.samples_wanted:
            utility = utility | self._utility.sample(weights)[1]
        content = json.dumps({"photographs": self._utility.photographs, "before": utility}, indent=2)
        write_atomically(self._directory.utility, lambda file: file.write_text(content + "\n", encoding="utf-8"))

    def _keep_final(self, server_round: int, weights: dict[str, Tensor]) -> dict[str, float]:
        """Write the final model and a picture of its samples; returns how far they are from the clients' images."""
        recipe = self._experiment.recipe
        notes = {"rounds": server_round, "run": self._evaluator.run}
        save_checkpoint(self._directory.model, Checkpoint(weights, recipe.model, recipe.scheduler, notes))
        if self._average is not None:
            average = Checkpoint(self._average.weights, recipe.model, recipe.scheduler, notes)
            save_checkpoint(self._directory.model_average, average)
        if not self._utility.samples_wanted:
            return {}
        samples, distance = self._utility.sample(weights)
        write_atomically(self._directory.samples, lambda file: save_grid(file, samples))
        return distance


def privacy_spent(experiment: Experiment, rounds: Iterable[RoundLog]) -> dict[int, Privacy]:
    """Of every client that was asked, having sent something each time; empty where the defence proves nothing."""
    settings = experiment.settings
    held = partition(settings.data, settings.federation.clients, settings.client.seed or 0)
    asked = Counter(client for log in rounds for client in log.asked)
    privacy = cache(partial(experiment.defence.privacy, experiment.recipe))
    spent = {client: privacy(len(held[client]), times) for client, times in sorted(asked.items())}
    return {client: privacy for client, privacy in spent.items() if privacy}


def most_spent(spent: Mapping[int, Privacy]) -> Privacy | None:
    """The privacy of the client that has least of it left."""
    return max(spent.values(), key=lambda privacy: privacy.epsilon, default=None)


def _round(log: RoundLog, arrays: ArrayRecord, spent: Mapping[int, Privacy], utility: dict[str, float]) -> Round:
    most = most_spent(spent)
    return Round(
        round=log.round,
        train_loss=fmean(log.losses),
        clients_seen=list(log.replied),
        clients_missing=list(log.failed),
        missing_because=list(log.failed.values()),
        client_device=", ".join(sorted(set(log.devices))),
        weights_sha256=weights_sha256(arrays),
        epsilon=most.epsilon if most else math.nan,
        delta=most.delta if most else math.nan,
        clients_asked=list(spent),
        epsilons=[privacy.epsilon for privacy in spent.values()],
        utility=utility,
    )


def weights_sha256(arrays: ArrayRecord) -> str:
    """A digest of all weights: their names in order, and their values with shape and type."""
    digest = sha256()
    for name, array in sorted(arrays.items()):
        digest.update(name.encode())
        digest.update(array.data)
    return digest.hexdigest()


app = ServerApp()
"""What ``flwr run`` starts; its run config names a preset (or a TOML file) and overrides."""


@app.main()
def _main(grid: Grid, context: Context) -> None:
    overrides = _overrides(str(context.run_config["overrides"]))
    experiment = prepare(load_run(str(context.run_config["preset"]), overrides))
    try_first_batch(experiment)
    directory = RunDirectory.create(flower_run_directory(context), experiment.settings)
    with run_progress(experiment, Console()) as display:
        _Run(experiment, directory, display, grid).go()


_FLOWERS_OWN = ("federation.client_cpus", "federation.client_gpus", "federation.client_timeout", "ray.address")
"""Settings that only ``fl-sim run`` heeds: under ``flwr run`` Flower starts the clients."""


def _overrides(text: str) -> list[str]:
    """The run config's overrides, split as a shell splits words; SettingsError if one of them would do nothing."""
    try:
        overrides = shlex.split(text)
    except ValueError as error:
        raise SettingsError(f"overrides = {text!r}: {error}") from error
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _FLOWERS_OWN:
            raise SettingsError(
                f"{override}: under flwr run Flower starts the clients; allowed: {key} unset, and Flower's own "
                "--federation-config"
            )
    return overrides


def run_progress(experiment: Experiment, console: Console) -> Progress:
    """A display for this experiment on ``console``."""
    federation, attack = experiment.settings.federation, experiment.settings.attack
    updates = federation.rounds * _seen_per_round(experiment)
    return Progress(console, federation.rounds, updates * len(attack.names))


def _seen_per_round(experiment: Experiment) -> int:
    """How many observations a round makes where everybody answers."""
    federation, strategy = experiment.settings.federation, experiment.strategy
    if isinstance(strategy, Gossip):
        return sum(len(strategy.neighbours(peer)) for peer in set(federation.curious_peers))
    return 1 if experiment.defence.sum_only else federation.clients_per_round or federation.clients
