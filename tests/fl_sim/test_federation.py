import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.exception import AggregationError

from fl_sim.client_app import build_client_app
from fl_sim.config import SettingsError
from fl_sim.federation import (
    AttackResources,
    _Guard,
    _own_signal_handler,
    _StoppableGrid,
    _Supervised,
    run_federation,
    split_resources,
)
from fl_sim.repeatable_grid import FederationError, RepeatableGrid
from fl_sim.wire import ARRAYS, CONFIG, ROUND, pack_reply
from tests.fl_sim.federations import fed_avg, node_context, repeatable_grid, tiny_settings


def test_a_backend_that_is_gone_ends_the_wait_for_replies() -> None:
    grid, stopped = repeatable_grid(), threading.Event()
    grid.grid = _StoppableGrid(grid.grid, stopped, grid.grid.nodes)
    grid.partitions()
    stopped.set()
    with pytest.raises(FederationError, match="the simulation backend has stopped"):
        fed_avg(grid)


@pytest.mark.parametrize(
    ("overrides", "machine", "attack", "expected"),
    [
        (["federation.client_cpus=2"], (2, 0), AttackResources(2), (1, 0.0)),
        (["federation.client_cpus=8"], (2, 0), AttackResources(), (1, 0.0)),
        (["federation.client_cpus=0.5"], (2, 0), AttackResources(), (3, 0.0)),
        (["federation.clients=99", "federation.clients_per_round=5"], (16, 0), AttackResources(), (5, 0.0)),
        ([], (16, 1), AttackResources(2, 0.25), (3, 0.1666)),
        ([], (16, 8), AttackResources(), (3, 1.0)),
        (["federation.client_gpus=0.3"], (16, 1), AttackResources(1, 0.4), (2, 0.3)),
        (["federation.client_gpus=0"], (16, 1), AttackResources(1, 1.0), (3, 0.0)),
    ],
)
def test_resources_leave_room_for_the_attack(
    overrides: list[str], machine: tuple[int, int], attack: AttackResources, expected: tuple[int, float]
) -> None:
    actors, client_gpus = split_resources(tiny_settings(*overrides), *machine, attack)
    assert (actors, client_gpus) == expected
    assert actors * client_gpus + attack.workers * attack.gpus_per_worker <= machine[1]


@pytest.mark.parametrize(
    ("overrides", "attack", "key"),
    [
        ([], AttackResources(3, 0.5), "attack.gpus_per_worker = 0.5"),
        (["federation.client_gpus=0.6"], AttackResources(1, 0.5), "federation.client_gpus = 0.6"),
    ],
)
def test_gpus_that_are_not_there_are_refused(overrides: list[str], attack: AttackResources, key: str) -> None:
    with pytest.raises(SettingsError, match=key):
        split_resources(tiny_settings(*overrides), 16, 1, attack)


@_own_signal_handler()
def start_as_ray_does() -> None:
    """Put another handler in the place of the process's, and meet a signal meanwhile."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
    signal.raise_signal(signal.SIGTERM)


def test_a_sigterm_that_ray_catches_while_it_starts_is_handed_on() -> None:
    caught: list[int] = []
    usual = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        ours = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit):
            start_as_ray_does()
        assert caught == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, usual)


def server_app(work: Callable[[RepeatableGrid], Any]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        work(RepeatableGrid(grid, 0, 3, timeout=120.0))

    return app


def answers_with_what_it_got(message: Message, client: int) -> Message:
    sent = message.content.array_records[ARRAYS].to_torch_state_dict()
    return Message(pack_reply(sent, 2, 0.5, client, "cpu"), reply_to=message)


@pytest.mark.ray
def test_on_ray_a_client_that_dies_raises_or_hangs_is_missing_from_that_round_alone() -> None:
    mortal = ClientApp()

    @mortal.query()
    def query(message: Message, context: Context) -> Message:
        return build_client_app(tiny_settings())(message, context)

    @mortal.train()
    def train(message: Message, context: Context) -> Message:
        client = context.node_config["partition-id"]
        match message.content.config_records[CONFIG][ROUND], client:
            case 2, 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case 3, 0:
                raise MemoryError("too little for this client")
            case 4, 2:
                time.sleep(600)
        return answers_with_what_it_got(message, client)

    grids: list[RepeatableGrid] = []

    def five_rounds(grid: RepeatableGrid) -> None:
        grids.append(grid)
        fed_avg(grid, rounds=5, clients=3)

    settings = tiny_settings("federation.client_cpus=2", "federation.client_timeout=3")
    run_federation(server_app(five_rounds), mortal, settings)
    assert [log.replied for log in grids[0].rounds] == [(0, 1, 2), (0, 2), (1, 2), (0, 1), (0, 1, 2)]
    died = "the client's process died, or was ended after 3 s"
    assert [log.failed for log in grids[0].rounds] == [{}, {1: died}, {0: "too little for this client"}, {2: died}, {}]


def test_a_client_that_is_asked_for_too_long_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_sim.federation._attempts_before", lambda: 0)
    asked = Message(RecordDict(), dst_node_id=1, message_type="train", ttl=60.0)
    asked.metadata.__dict__["_created_at"] = time.time() - 61
    with pytest.raises(FederationError, match="asked in an earlier round"):
        _Supervised(ClientApp(), 1.0)(asked, node_context(0))


def test_what_flowers_strategies_end_a_run_with_is_one_line() -> None:
    app = ServerApp()

    @app.main()
    def main(*_: object) -> None:
        raise AggregationError("beta is\ntoo large")

    guard = _Guard(app)
    guard.server_app()(repeatable_grid(), node_context(0))
    assert isinstance(guard.failure, FederationError)
    assert str(guard.failure) == "AggregationError: beta is too large"
    assert guard.ended.is_set()


def test_no_cluster_at_the_address_is_one_clear_line() -> None:
    settings = tiny_settings("ray.address=127.0.0.1:1")
    with pytest.raises(SettingsError, match=r"ray\.address = '127\.0\.0\.1:1'"):
        run_federation(server_app(fed_avg), build_client_app(settings), settings)
