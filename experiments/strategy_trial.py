"""The strategy, asked before the run whom it would train, on a Grid whose clients never answer.

No client trains here. Afterwards one client trains on one batch, without the strategy (experiments/batch_trial.py).
"""

import logging
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import Strategy, strategy_utils
from flwr.supercore.task_identity import TaskIdentity
from typing_extensions import override

from experiments.settings import ExperimentSettings
from fl_sim.config import SettingsError
from fl_sim.errors import explain
from fl_sim.local_grid import LocalGrid
from fl_sim.repeatable_grid import reseed_sampling
from fl_sim.wire import ARRAYS, CONFIG, RECIPE, ROUND
from strategies.gossip import Gossip
from strategies.layers import layers

ROUNDS = 8
"""A strategy is asked whom it would train in at most so many rounds."""

POLLS = 10
"""A strategy that asks for the nodes more often than this before it sends anything is waiting for more of them."""

SAMPLE_SIZE = ("fraction_train", "min_train_nodes")
"""Flower's arguments that together say how many clients train. Given one of them, the other keeps its default."""


def count_trained_clients(
    build: Callable[[], Strategy], settings: ExperimentSettings, arrays: ArrayRecord, config: ConfigRecord
) -> set[int]:
    """How many clients a strategy trains in each of its first ROUNDS rounds, as a set of the numbers that occur.

    The set is empty where the strategy wants clients' answers before it chooses.

    Args:
        build: makes the strategy, which is thrown away afterwards. Random numbers are left as they were.
        settings: of the run.
        arrays: the weights that the run starts from.
        config: what the run sends to clients.

    Raises:
        SettingsError: if the strategy asks for more clients than there are, or for none, or addresses clients that
            there are not, or sends messages that they cannot read.
    """
    with _undisturbed():
        strategy = build()
        if isinstance(strategy, Gossip):
            return {settings.federation.clients}
        answer = _within(settings.federation.timeout, lambda: _ask(strategy, settings, arrays, config))
        if answer is None:
            raise SettingsError(
                f"{given_arguments(settings, SAMPLE_SIZE)}: has not said whom it trains within federation.timeout = "
                f"{settings.federation.timeout:g} s"
            )
        return answer


def _ask(strategy: Strategy, settings: ExperimentSettings, arrays: ArrayRecord, config: ConfigRecord) -> set[int]:
    """What ``count_trained_clients`` returns or raises."""
    grid = _UnansweringGrid(settings.seed, settings.federation.clients)
    try:
        trained = {_trained_at_first(strategy, settings, arrays, config, grid)}
        _start_evaluation(strategy, arrays, grid)
        return trained | _trained_later(strategy, settings.federation.rounds, arrays, config, grid)
    except _WaitsForNodesError:
        raise _too_many_wanted(settings, strategy) from None
    except _AsksClientsError:
        return set()


def _within(seconds: float, ask: Callable[[], set[int]]) -> set[int] | None:
    """What ``ask`` returns or raises; None if that takes longer, and then its thread is left behind."""
    answers: list[set[int] | BaseException] = []

    def keep_answer() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # raised again where it was asked
            answers.append(error)

    thread = threading.Thread(target=keep_answer, daemon=True)
    thread.start()
    thread.join(min(seconds, threading.TIMEOUT_MAX))
    answer = answers[0] if answers else None
    if isinstance(answer, BaseException):
        raise answer
    return answer


class _WaitsForNodesError(BaseException):
    """The strategy waits for more nodes. No Exception: the strategy may catch those and go on waiting."""


class _AsksClientsError(BaseException):
    """The strategy wants to hear from clients before it says whom it trains."""


class _UnansweringGrid(LocalGrid):
    """A Grid that samples as the run does and counts how often it is asked for its nodes; its clients never answer."""

    def __init__(self, seed: int, clients: int) -> None:
        super().__init__(_ask_nobody, range(1000, 1000 + clients))
        self.seed = seed
        self.enter_round(1)

    def enter_round(self, number: int) -> None:
        """Sample for that round from now on, and restart the count."""
        self.round, self.asked = number, 0

    @override
    def get_node_ids(self) -> list[int]:
        self.asked += 1
        if self.asked > POLLS:
            raise _WaitsForNodesError
        reseed_sampling(self.seed, self.round)
        return super().get_node_ids()


def _ask_nobody(*_: Any) -> NoReturn:
    raise _AsksClientsError


def _trained_at_first(
    strategy: Strategy, settings: ExperimentSettings, arrays: ArrayRecord, config: ConfigRecord, grid: _UnansweringGrid
) -> int:
    """How many clients round 1 trains; SettingsError if they cannot do what it asks."""
    subject = given_arguments(settings, SAMPLE_SIZE)
    try:
        messages = list(strategy.configure_train(1, arrays, config, grid))
        asked = {message.metadata.dst_node_id for message in messages}
    except (Exception, SystemExit) as error:
        raise SettingsError(f"{subject}: cannot configure round 1: {explain(error)}") from error
    if not asked:
        raise SettingsError(f"{subject}: trains nobody")
    if strangers := asked - grid.nodes.keys():
        raise SettingsError(f"{subject}: addresses node {min(strangers)}, which is none of those that the Grid names")
    for message in messages:
        _check_content(settings, message)
    return len(asked)


def _start_evaluation(strategy: Strategy, arrays: ArrayRecord, grid: _UnansweringGrid) -> None:
    """Let the strategy choose who evaluates: it may wait for more nodes. Other failures do not matter: nobody does."""
    grid.enter_round(1)
    with suppress(Exception, _AsksClientsError):
        list(strategy.configure_evaluate(1, arrays, ConfigRecord(), grid))


def _trained_later(
    strategy: Strategy, rounds: int, arrays: ArrayRecord, config: ConfigRecord, grid: _UnansweringGrid
) -> set[int]:
    """The numbers of clients in the next rounds, up to the first round that needs results of training."""
    trained = set()
    with suppress(Exception, _WaitsForNodesError, _AsksClientsError):
        for number in range(2, min(rounds, ROUNDS) + 1):
            grid.enter_round(number)
            trained.add(len(list(strategy.configure_train(number, arrays, config, grid))))
    return trained


def _check_content(settings: ExperimentSettings, message: Message) -> None:
    """Refuse a message that lacks the weights, the recipe or the round where clients look for them."""
    if ARRAYS not in message.content.array_records:
        subject = given_arguments(settings, ("arrayrecord_key",))
        raise SettingsError(f"{subject}: clients look for the weights in the record {ARRAYS!r} of a message")
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    if missing := {RECIPE, ROUND} - config.keys():
        subject = given_arguments(settings, ("configrecord_key",))
        raise SettingsError(f"{subject}: clients look for {min(missing)!r} in the record {CONFIG!r} of a message")


def _too_many_wanted(settings: ExperimentSettings, strategy: Strategy) -> SettingsError:
    """The error for a strategy that waits for more clients than there are."""
    clients = settings.federation.clients
    for layer in layers(strategy):
        for key, most in (("min_available_nodes", clients), ("min_train_nodes", clients), ("fraction_train", 1)):
            value = getattr(layer, key, None)
            if isinstance(value, int | float) and value > most:
                unless = "" if key in settings.strategy.args else " (by default)"
                return SettingsError(
                    f"strategy.args.{key} = {value!r}{unless}: {type(layer).__name__} waits for more clients than "
                    f"there are, federation.clients = {clients}"
                )
    return SettingsError(
        f"{given_arguments(settings, SAMPLE_SIZE)}: waits for more clients than there are, "
        f"federation.clients = {clients}"
    )


def given_arguments(settings: ExperimentSettings, keys: Iterable[str]) -> str:
    """Which of the strategy's arguments ``keys`` the user gave, with their values; the strategy's name if none."""
    given = [f"strategy.args.{key} = {settings.strategy.args[key]!r}" for key in keys if key in settings.strategy.args]
    return ", ".join(given) or f"strategy.name = {settings.strategy.name!r}"


_IDENTITY = ("_task_id", "_run_id", "_node_id")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put random numbers, Flower's log and its identity of the run back afterwards; Flower does not sleep meanwhile."""
    log, identity = logging.getLogger("flwr"), {key: vars(TaskIdentity)[key] for key in _IDENTITY}
    states, silent, sleep = (random.getstate(), np.random.get_state()), log.disabled, strategy_utils.sleep
    log.disabled, strategy_utils.sleep = True, lambda _: None
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        log.disabled, strategy_utils.sleep = silent, sleep
        random.setstate(states[0])
        np.random.set_state(states[1])
        for key, value in identity.items():
            setattr(TaskIdentity, key, value)
