import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_sim.client_app import build_client_app
from fl_sim.config import SettingsError
from fl_sim.federation import (
    AttackResources,
    FederationError,
    RepeatableGrid,
    _StoppableGrid,
    _Supervised,
    run_federation,
    split_resources,
)
from fl_sim.wire import ARRAYS, CONFIG, ROUND, pack_reply
from tests.fl_sim.federations import LocalGrid, initial_arrays, node_context, tiny_settings, weights_recipe

RECIPE = weights_recipe()


def fed_avg(grid: Grid, rounds: int = 2, clients: int = 2) -> dict[str, torch.Tensor]:
    """Final weights of FedAvg with so many of three clients in each round."""
    strategy = FedAvg(fraction_train=clients / 3 + 0.01, fraction_evaluate=0.0)
    result = strategy.start(grid, initial_arrays(RECIPE), num_rounds=rounds, train_config=RECIPE.to_config())
    return result.arrays.to_torch_state_dict()


def local_grid(seed: int = 0, chance: int = 0) -> RepeatableGrid:
    return RepeatableGrid(LocalGrid(build_client_app(tiny_settings()), 3, chance), seed, 3, timeout=1.0)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("clients", [2, 3])
def test_node_ids_and_reply_order_are_random_and_yet_runs_are_bitwise_the_same(clients: int) -> None:
    grids = [local_grid(chance=chance) for chance in range(4)]
    results = [fed_avg(grid, clients=clients) for grid in grids]
    for grid, result in zip(grids[1:], results[1:], strict=True):
        assert grid.partitions() != grids[0].partitions()
        assert list(grid.partitions().values()) == [0, 1, 2]
        assert equal(result, results[0])
        assert grid.rounds == grids[0].rounds


def test_sampling_follows_the_public_seed_and_the_round() -> None:
    asked = set()
    for seed in range(4):
        grid = local_grid(seed)
        fed_avg(grid, rounds=2)
        asked.add(tuple(log.asked for log in grid.rounds))
    assert len(asked) > 1
    assert any(first != second for first, second in asked)


def test_the_noise_that_a_strategy_draws_from_numpy_repeats() -> None:
    drawn = []
    for _ in range(2):
        local_grid().get_node_ids()
        drawn.append(np.random.rand())
    assert drawn[0] == drawn[1]


def test_a_round_log_says_who_trained_and_who_did_not() -> None:
    grid = local_grid()
    grid.grid.errors = {0: "out of\nluck", 2: ""}
    FedAvg(fraction_evaluate=0.0).start(grid, initial_arrays(RECIPE), num_rounds=1, train_config=RECIPE.to_config())
    log = grid.rounds[0]
    assert (log.round, log.asked, log.replied, log.devices) == (1, (0, 1, 2), (1,), ("cpu",))
    assert log.failed == {0: "out of luck", 2: "no reply in time"}
    assert 0 < log.losses[0] < 10


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({1: "<class 'ray.exceptions.ActorDiedError'>:<'worker gone'>"}, "a client process died.*worker gone"),
        ({0: "no", 1: "no", 2: "no"}, "round 1: no client trained; client 0: no"),
    ],
)
def test_a_process_dead_for_good_or_a_round_without_training_stops_the_run(
    errors: dict[int, str], message: str
) -> None:
    grid = local_grid()
    grid.grid.errors = errors
    with pytest.raises(FederationError, match=message):
        FedAvg(fraction_evaluate=0.0).start(grid, initial_arrays(RECIPE), num_rounds=2, train_config=RECIPE.to_config())


def test_missing_clients_are_waited_for_only_so_long() -> None:
    grid = RepeatableGrid(LocalGrid(build_client_app(tiny_settings()), 2), 0, 3, timeout=0.1)
    with pytest.raises(FederationError, match="2 of 3 clients registered"):
        grid.get_node_ids()


def test_more_supernodes_than_clients_are_refused() -> None:
    grid = RepeatableGrid(LocalGrid(build_client_app(tiny_settings()), 3), 0, 2, timeout=1.0)
    with pytest.raises(FederationError, match=r"indices \[0, 1, 2\]: federation\.clients = 2 needs as many SuperNodes"):
        grid.get_node_ids()


def test_a_backend_that_is_gone_ends_the_wait_for_replies() -> None:
    grid, stopped = local_grid(), threading.Event()
    grid.grid = _StoppableGrid(grid.grid, stopped)
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


def server_app(work: Callable[[RepeatableGrid], Any]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        work(RepeatableGrid(grid, 0, 3, timeout=120.0))

    return app


@pytest.mark.ray
def test_on_ray_the_weights_are_those_of_this_process() -> None:
    results: list[dict[str, torch.Tensor]] = []
    settings = tiny_settings("federation.client_cpus=2")

    def twice(grid: RepeatableGrid) -> None:
        results.append(fed_avg(grid))
        results.append(fed_avg(RepeatableGrid(grid.grid, 0, 3, timeout=120.0)))

    run_federation(server_app(twice), build_client_app(settings), settings, AttackResources(1))
    assert equal(results[0], results[1])
    assert equal(results[0], fed_avg(local_grid()))


def answers_with_what_it_got(message: Message, client: int) -> Message:
    sent = message.content.array_records[ARRAYS].to_torch_state_dict()
    return Message(pack_reply(sent, 1, 0.5, client, "cpu"), reply_to=message)


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


@pytest.mark.ray
def test_no_cluster_at_the_address_is_one_clear_line() -> None:
    settings = tiny_settings("ray.address=127.0.0.1:1")
    with pytest.raises(SettingsError, match=r"ray\.address = '127\.0\.0\.1:1'"):
        run_federation(server_app(fed_avg), build_client_app(settings), settings)
