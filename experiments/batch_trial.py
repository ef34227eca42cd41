"""One client's first batch, trained for real before the run: what fails here would fail in every round.

Client 0 trains on the first batch of its first round and replies as it would in the run. The server makes an
Observation of the reply, and every attack says whether it could work on it. The strategy has no part in this; it has
been tried before, without clients (experiments/strategy_trial.py).
"""

from dataclasses import dataclass, replace

import torch
from flwr.app import ArrayRecord, Message, MessageType, RecordDict

from attacks.observation import CaptureError, UpdateId
from attacks.registry import create
from experiments.experiment import Experiment
from fl_sim.client_app import build_client_app
from fl_sim.config import SettingsError
from fl_sim.errors import one_line, plugged_in
from fl_sim.images.partition import partition
from fl_sim.local_grid import LocalGrid
from fl_sim.network import ConfigError
from fl_sim.wire import ARRAYS, CONFIG, METRICS, ROUND, TRAIN_LOSS, arrays_in
from strategies.honest_but_curious import View, make_observation

_CLIENT, _NODE, _ROUND = 0, 1, 1


@dataclass(frozen=True)
class FirstBatch:
    """The training loss of one batch, and the size of the reply in bytes, in the type that crosses the wire."""

    loss: float
    size: int


def try_first_batch(experiment: Experiment) -> FirstBatch:
    """Train one batch as client 0 would, and check that every attack could work on its update.

    Raises:
        SettingsError: if the batch cannot be trained, or the server cannot read its update.
        AttackError: if an attack needs something that the server will not know.
    """
    reply = _train_one_batch(experiment)
    if experiment.settings.attack.names:
        _check_attacks(experiment, reply)
    return FirstBatch(
        loss=float(str(reply.content.metric_records[METRICS][TRAIN_LOSS])),
        size=sum(len(array.data) for array in arrays_in(reply.content).values()) * _bytes_per_number(experiment) // 4,
    )


def _bytes_per_number(experiment: Experiment) -> int:
    return int(getattr(torch, experiment.recipe.dtype).itemsize)


def _train_one_batch(experiment: Experiment) -> Message:
    recipe = experiment.recipe.model_copy(update={"local_steps": 1, "epochs": None})
    config = recipe.to_config()
    config[ROUND] = _ROUND
    content = RecordDict({ARRAYS: ArrayRecord(experiment.weights), CONFIG: config})
    grid = LocalGrid(build_client_app(experiment.settings), [_NODE])
    try:
        [reply] = grid.send_and_receive([Message(content, _NODE, MessageType.TRAIN)])
    except (SettingsError, ConfigError):
        raise
    except Exception as error:  # whatever a network, a defence or the device can raise
        reason = one_line(f"{type(error).__name__}: {error}")
        raise SettingsError(f"client {_CLIENT} cannot train its first batch: {reason}") from error
    return reply


def _check_attacks(experiment: Experiment, reply: Message) -> None:
    """Check that every attack could work on the update, described as one of all local steps."""
    settings, recipe = experiment.settings, experiment.recipe
    held = partition(settings.data, settings.federation.clients, settings.client.seed or 0)[_CLIENT]
    one = View.of(UpdateId(_ROUND, _CLIENT), lambda: experiment.weights, reply.content)
    samples = recipe.samples(len(held))
    view = replace(one, num_examples=samples, labels=one.labels * (samples // recipe.batch_size))
    summed = (settings.federation.clients_per_round or 1) if experiment.defence.sum_only else 1
    update_id = UpdateId(_ROUND, _CLIENT if summed == 1 else -1)
    try:
        seen = make_observation(recipe, update_id, [view] * summed, experiment.disclosure())
    except CaptureError as error:
        raise SettingsError(f"the server could not read an update: {error}") from error
    for name, arguments in settings.attack.arguments.items():
        attack = create(name, arguments, "attack")
        with plugged_in(f"attack {name!r}"):
            attack.check(seen)
