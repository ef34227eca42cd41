"""Writes down a run while it goes on: rounds, leakage, how good the model is, the final model."""

import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.observation import UpdateId
from attacks.workers import Result
from experiments.callbacks import Callback, Callbacks
from experiments.checkpoint import save_checkpoint
from experiments.experiment import Experiment
from experiments.leakage import Evaluator, LeakageTable, summed_truth
from experiments.loaded_run import Images
from experiments.metrics.registry import definitions, unavailable
from experiments.pictures import save_grid
from experiments.privacy import most_spent, privacy_spent
from experiments.progress import Progress
from experiments.rounds import Round, save_rounds
from experiments.run_directory import RunDirectory
from experiments.run_state import Earlier, RunState
from experiments.seen_updates import is_attacked, seen_updates
from experiments.utility import Utility
from fl_sim.checkpoint import Checkpoint
from fl_sim.defences.privacy import Privacy
from fl_sim.files import write_atomically
from fl_sim.repeatable_grid import FederationError, RoundLog
from fl_sim.wire import whole_model
from strategies.ema import WeightAverage


class Recorder:
    """The evaluator of one run, which sees reconstructions and private images, and fills the run directory.

    Args:
        experiment: what runs.
        directory: where everything is written.
        display: shows every round and attack.
        rounds: who took part in each round so far; the Grid appends to it.
        earlier: what the run had written when it was broken off; None for a new one.
        callbacks: are told of every round and attack as well.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: RunDirectory,
        display: Progress,
        rounds: Sequence[RoundLog],
        earlier: Earlier | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        settings = experiment.settings
        self._experiment, self._directory, self._display, self._logs = experiment, directory, display, rounds
        state, rows = (None, []) if earlier is None else (earlier.state, earlier.leakage)
        self._rounds: list[Round] = [] if state is None else list(state.rounds)
        self._evaluator = Evaluator(directory.run_name(), settings, experiment.recipe)
        further = self._evaluator.further_columns
        self._leakage = LeakageTable(directory.leakage_csv, directory.leakage_parquet, rows, further)
        self._utility = Utility(settings, experiment.recipe)
        self._callbacks = Callbacks(callbacks, partial(display.say, in_terminal=True))
        self._attacked: dict[int, dict[tuple[int, str, str], list[dict[str, Any]]]] = {}
        for row in rows:
            self._attacks_of(row).setdefault((row["client"], row["observer"], row["attack"]), []).append(row)
        self._average = None if settings.strategy.ema is None else WeightAverage(settings.strategy.ema)
        if self._average is not None and state is not None:
            self._average.weights = state.average
        metrics = self._evaluator.metrics
        directory.write_environment(unavailable(metrics) | self._utility.not_computed(), definitions(metrics))

    def after_attack(self, update_id: UpdateId, attack: str, result: Result) -> None:
        """Add the attack's rows to the leakage table; ``result`` is the reason where it failed."""
        summed = self._logs[update_id.round - 1].replied if update_id.client < 0 else ()
        rows = self._evaluator.rows(update_id.round, update_id.client, attack, result, update_id.observer, summed)
        self._leakage.append(rows)
        self._display.attacked(rows)
        if self._callbacks:
            self._tell_of_attack(update_id, result, rows, summed or [update_id.client])

    def after_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Measure the new global weights ``arrays``; Flower also calls this before the first round, as round 0.

        Raises:
            FederationError: if no client was asked to train.
        """
        weights = whole_model(self._experiment.recipe, arrays.to_torch_state_dict())
        if self._average is not None:
            self._average.update(weights)
        utility = self._utility.measure(weights) if self._utility.due(server_round) else {}
        if server_round == 0:
            self._keep_initial(weights, utility)
            self._display.step("training round 1")
            return
        settings = self._experiment.settings
        if settings.inversion.due(server_round, settings.federation.rounds):
            self._save_model(self._directory.global_model(server_round), server_round, weights)
        if server_round == settings.federation.rounds:
            utility |= self._keep_final(server_round, weights)
        if len(self._logs) < server_round:
            raise FederationError(f"round {server_round}: the strategy asked no client to train")
        spent = privacy_spent(self._experiment, self._logs)
        finished = _round(self._logs[-1], arrays, spent, utility)
        self._rounds.append(finished)
        self._leakage.save()
        save_rounds(self._directory.rounds, self._rounds, self._leakage.frame())
        self._display.round_done(finished)
        self._callbacks.tell(lambda callback: callback.on_round(finished.row()))

    def state(self, arrays: ArrayRecord, strategy: Strategy) -> RunState:
        """Where the run is: the global weights ``arrays``, and what ``strategy`` and the recorder remember.

        Raises:
            StrategyError: if the strategy remembers something that cannot be written down.
        """
        average = {} if self._average is None else self._average.weights
        return RunState.of(self._evaluator.run, arrays, strategy, average, self._logs, self._rounds)

    def close(self) -> None:
        """Write both tables for the last time."""
        self._leakage.close()
        save_rounds(self._directory.rounds, self._rounds, self._leakage.frame())

    def _attacks_of(self, row: Mapping[str, Any]) -> dict[tuple[int, str, str], list[dict[str, Any]]]:
        """The rows of every attack of the round that ``row`` is of."""
        return self._attacked.setdefault(row["round"], {})

    def _tell_of_attack(
        self, update_id: UpdateId, result: Result, rows: list[dict[str, Any]], clients: Sequence[int]
    ) -> None:
        experiment, number = self._experiment, update_id.round
        truth = summed_truth(experiment.settings, experiment.recipe, clients, number)
        images = Images.of(truth.images, [result] if isinstance(result, Reconstruction) else [])
        self._callbacks.tell(lambda callback: callback.on_attack(deepcopy(rows), images))
        of_round = self._attacks_of(rows[0])
        of_round[rows[0]["client"], rows[0]["observer"], rows[0]["attack"]] = rows
        attacked = [u for u in seen_updates(experiment, self._logs[number - 1]) if is_attacked(experiment.settings, u)]
        if len(of_round) == len(attacked) * len(experiment.settings.attack.names):
            everything = [row for own in of_round.values() for row in own]
            self._callbacks.tell(lambda callback: callback.on_round_attacked(deepcopy(everything)))

    def _keep_initial(self, weights: dict[str, Tensor], utility: dict[str, float]) -> None:
        """Write how good the model is that the run starts from."""
        if self._utility.samples_wanted:
            utility = utility | self._utility.sample(weights)[1]
        content = json.dumps({"held_out": self._utility.sources, "before": utility}, indent=2)
        write_atomically(self._directory.utility, lambda file: file.write_text(content + "\n", encoding="utf-8"))

    def _keep_final(self, server_round: int, weights: dict[str, Tensor]) -> dict[str, float]:
        """Write the final model and a picture of its samples; returns how far they are from the clients' images."""
        self._save_model(self._directory.model, server_round, weights)
        if self._average is not None:
            self._save_model(self._directory.model_average, server_round, self._average.weights)
        if not self._utility.samples_wanted:
            return {}
        samples, distance = self._utility.sample(weights)
        write_atomically(self._directory.samples, lambda file: save_grid(file, samples))
        return distance

    def _save_model(self, path: Path, server_round: int, weights: dict[str, Tensor]) -> None:
        """Write global weights after a round as a checkpoint."""
        recipe = self._experiment.recipe
        notes = {"rounds": server_round, "run": self._evaluator.run}
        save_checkpoint(path, Checkpoint(weights, recipe.model, recipe.task, notes))


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
    """SHA-256 of all weights: names in alphabetical order, each followed by its values with shape and type."""
    digest = sha256()
    for name, array in sorted(arrays.items()):
        digest.update(name.encode())
        digest.update(array.data)
    return digest.hexdigest()
