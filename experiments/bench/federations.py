"""One measurement of the benchmark of the defences: a federation is trained, attacked, and its model evaluated.

Client, defence, strategy and curious server are those of a run; all work in one process, without Ray.
"""

import logging
import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.observation import Observation, ThreatModel, UpdateId
from experiments.bench.attack_measurement import attempt, compared
from experiments.bench.benchmark import Measurement, Row
from experiments.experiment import Experiment, prepare
from experiments.launch import federate, repeatable_grid
from experiments.leakage import Truth, client_truth, summed_truth
from experiments.privacy import most_spent, privacy_spent
from experiments.settings import ExperimentSettings
from experiments.utility import DISTANCE, LOSS, Utility
from fl_sim.client_app import build_client_app
from fl_sim.config import resolve
from fl_sim.draws import derive_seed
from fl_sim.local_grid import LocalGrid
from fl_sim.repeatable_grid import FederationError, RoundLog
from fl_sim.settings_file import load_settings

UNDEFENDED = {
    "data": {"photographs": ["hopper", "ihc"], "image_size": 16},
    "model": {"checkpoint": "none"},
    "federation": {"clients": 4},
    "strategy": {"name": "FedSGD", "args": {"optimizer": "adam", "lr": 1e-3}},
}
"""The settings of a federation without a defence: from an untrained model, so that a short training already shows what
a defence costs, and on photographs on which no checkpoint was trained."""


@dataclass(frozen=True)
class Setup:
    """A defence, or another way to train, under the name and the ``strength`` that it has in the table.

    ``overrides`` are the settings in which it differs from UNDEFENDED, as ``fl-sim run --set`` takes them; ``images``
    are those behind what the server sees at once; ``quick`` setups are in the quick benchmark.
    """

    name: str
    strength: str = ""
    overrides: tuple[str, ...] = ()
    images: int = 1
    quick: bool = True


@dataclass(frozen=True)
class DefenceMeasurement(Measurement):
    """One federation of so many ``rounds``; in those of ``attacked``, the first so many ``victims`` are attacked."""

    setup: Setup
    rounds: int
    attacked: tuple[int, ...]
    victims: int
    seed: int
    attack: str = "residual"
    arguments: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def cost(self) -> float:
        """Grows with the images behind what is attacked."""
        return self.setup.images

    def subject(self) -> Row:
        """The federation, whom of it is attacked, and how."""
        return {
            "defence": self.setup.name,
            "strength": self.setup.strength,
            "overrides": self.setup.overrides,
            "rounds": self.rounds,
            "attacked": self.attacked,
            "victims": self.victims,
            "attack": self.attack,
            "arguments": self.arguments,
            "seed": self.seed,
        }

    def settings(self) -> ExperimentSettings:
        """Those of the federation; no attack learns the seed that the clients draw from."""
        private = derive_seed(self.seed, "clients")
        given = [f"seed={self.seed}", f"client.seed={private}", f"federation.rounds={self.rounds}"]
        return resolve(load_settings(ExperimentSettings, UNDEFENDED, [*given, *self.setup.overrides]))

    def measure(self) -> Row:
        """Train, attack what was seen, with the defence known and not, and look at the model.

        ``before`` and ``after`` are held-out loss and patch distance of the model, None where they are not finite.
        ``privacy`` is None where nothing is proven; its epsilon is None where it is infinite.
        """
        logging.getLogger("flwr").setLevel(logging.ERROR)
        experiment = prepare(self.settings())
        utility = Utility(experiment.settings, experiment.recipe)
        sink = ObservationSink(self.attacked, self.victims)
        started = time.perf_counter()
        weights, rounds = _train(experiment, sink)
        training_seconds = time.perf_counter() - started
        privacy = most_spent(privacy_spent(experiment, rounds))
        attacks = [row for update_id, seen in sink.seen.items() for row in _attack(self, experiment, update_id, seen)]
        return {
            "disclosed": experiment.defence.disclosure(experiment.recipe),
            "training_seconds": training_seconds,
            "before": _figures(utility, experiment.weights),
            "after": _figures(utility, weights),
            "privacy": privacy and {"epsilon": _finite(privacy.epsilon), "delta": privacy.delta},
            "attacks": attacks,
        }


class ObservationSink:
    """Keeps what the server saw in some rounds of the first few clients, or of their sum, or why it saw nothing."""

    def __init__(self, rounds: Collection[int], clients: int) -> None:
        self.seen: dict[UpdateId, Observation | str] = {}
        self._rounds, self._clients = rounds, clients

    def observe(self, observation: Observation) -> None:
        """Keep it, if it is wanted."""
        self._keep(observation.circumstances.update_id, observation)

    def failed(self, update_id: UpdateId, reason: str) -> None:
        """Keep the reason, if the observation was wanted."""
        self._keep(update_id, reason)

    def give_up(self, reason: str) -> None:
        """Keep the reason for all that was wanted and has not come."""
        for number, client in product(self._rounds, range(self._clients)):
            self.seen.setdefault(UpdateId(number, client), reason)

    def drain(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is held."""

    def _keep(self, update_id: UpdateId, seen: Observation | str) -> None:
        if update_id.round in self._rounds and update_id.client < self._clients:
            self.seen[update_id] = seen


def _train(experiment: Experiment, sink: ObservationSink) -> tuple[dict[str, Tensor], list[RoundLog]]:
    """The weights after the last round, NaN where training broke off, and who took part in which."""
    settings = experiment.settings
    clients = range(1, settings.federation.clients + 1)
    grid = repeatable_grid(LocalGrid(build_client_app(settings), clients), settings)
    try:
        return federate(experiment, grid, sink).arrays.to_torch_state_dict(), grid.rounds
    except FederationError as error:  # all clients ran away to numbers that nobody takes
        sink.give_up(str(error))
        return {name: torch.full_like(value, math.nan) for name, value in experiment.weights.items()}, grid.rounds


def _attack(of: DefenceMeasurement, experiment: Experiment, update_id: UpdateId, seen: Observation | str) -> list[Row]:
    """A row for the attacker who knows of the defence and one for who does not; one alone if nothing is to be known."""
    truth = _truth(experiment, update_id)
    assert truth.timesteps is not None  # what is measured here is diffusion
    seed = derive_seed(of.seed, "attack", of.attack, update_id.round, update_id.client)
    threat = ThreatModel(experiment.settings.threat)
    rows = []
    for known in (True, False) if experiment.defence.disclosure(experiment.recipe) else (None,):
        found: Reconstruction | str
        if isinstance(seen, str):
            found = seen
        else:
            found = attempt(
                of.attack, of.arguments, _without_defence(seen) if known is False else seen, seed, of.device
            )
        whom = {"round": update_id.round, "client": update_id.client, "defence_known": known}
        rows.append(whom | compared(truth.images, truth.timesteps, found, threat))
    return rows


def _without_defence(observation: Observation) -> Observation:
    """The same update, as it looks to who does not know of the defence."""
    return replace(observation, circumstances=observation.circumstances.model_copy(update={"defence": None}))


def _truth(experiment: Experiment, update_id: UpdateId) -> Truth:
    settings, recipe = experiment.settings, experiment.recipe
    if update_id.client < 0:
        return summed_truth(settings, recipe, range(settings.federation.clients), update_id.round)
    return client_truth(settings, recipe, update_id.client, update_id.round)


def _figures(utility: Utility, weights: dict[str, Tensor]) -> dict[str, float | None]:
    figures = {LOSS: utility.measure(weights)[LOSS], DISTANCE: utility.sample(weights)[1][DISTANCE]}
    return {name: _finite(value) for name, value in figures.items()}


def _finite(value: float) -> float | None:
    """What JSON can write."""
    return value if math.isfinite(value) else None
