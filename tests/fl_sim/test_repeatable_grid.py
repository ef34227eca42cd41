import itertools
import time
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg, strategy_utils

from fl_sim.client_app import build_client_app
from fl_sim.repeatable_grid import FederationError, RepeatableGrid
from tests.fl_sim.federations import RECIPE, LocalGrid, equal, fed_avg, initial_arrays, repeatable_grid, tiny_settings


@pytest.mark.parametrize("clients", [2, 3])
def test_node_ids_and_reply_order_are_random_and_yet_runs_are_bitwise_the_same(clients: int) -> None:
    grids = [repeatable_grid(chance=chance) for chance in range(4)]
    results = [fed_avg(grid, clients=clients) for grid in grids]
    for grid, result in zip(grids[1:], results[1:], strict=True):
        assert grid.partitions() != grids[0].partitions()
        assert list(grid.partitions().values()) == [0, 1, 2]
        assert equal(result, results[0])
        assert grid.rounds == grids[0].rounds


def test_sampling_follows_the_public_seed_and_the_round() -> None:
    asked = set()
    for seed in range(4):
        grid = repeatable_grid(seed)
        fed_avg(grid, rounds=2)
        asked.add(tuple(log.asked for log in grid.rounds))
    assert len(asked) > 1
    assert any(first != second for first, second in asked)


def test_the_noise_that_a_strategy_draws_from_numpy_repeats() -> None:
    drawn = []
    for _ in range(2):
        repeatable_grid().get_node_ids()
        drawn.append(np.random.rand())
    assert drawn[0] == drawn[1]


def test_a_round_log_says_who_trained_and_who_did_not() -> None:
    grid = repeatable_grid()
    grid.grid.errors = {0: "out of\nluck", 2: ""}
    FedAvg(fraction_evaluate=0.0).start(grid, initial_arrays(RECIPE), num_rounds=1, train_config=RECIPE.to_config())
    log = grid.rounds[0]
    assert (log.round, log.asked, log.replied, log.devices) == (1, (0, 1, 2), (1,), ("cpu",))
    assert log.failed == {0: "out of luck", 2: "no reply in time"}
    assert 0 < log.losses[0] < 10


class LateGrid(LocalGrid):
    """The first answer of client 1 comes when its round has closed."""

    def __init__(self) -> None:
        super().__init__(build_client_app(tiny_settings()), 3)
        self.late: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.replies += self.late
        return super().push_messages(messages)

    def answer(self, message: Message) -> Message | None:
        reply = super().answer(message)
        if message.metadata.message_type != "train" or self.nodes[message.metadata.dst_node_id] != 1 or self.late:
            return reply
        self.late += filter(None, [reply])
        return None


def test_a_late_reply_counts_in_no_round() -> None:
    grid = RepeatableGrid(LateGrid(), 0, 3, timeout=1.0)
    fed_avg(grid, clients=3)
    assert [log.replied for log in grid.rounds] == [(0, 2), (0, 1, 2)]
    assert grid.rounds[0].failed == {1: "no reply in time"}


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
    grid = repeatable_grid()
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


@pytest.mark.parametrize("asked", ["min_available_nodes", "min_train_nodes"])
def test_a_strategy_that_waits_for_more_clients_than_there_are_is_waited_for_only_so_long(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy_utils, "sleep", lambda _: time.sleep(0.02))
    grid = RepeatableGrid(LocalGrid(build_client_app(tiny_settings()), 3), 0, 3, timeout=0.2)
    strategy = FedAvg(fraction_evaluate=0.0, **{asked: 4})
    with pytest.raises(FederationError, match=r"round 1: the strategy has waited 0\.2 s for more clients than the 3"):
        strategy.start(grid, initial_arrays(RECIPE), num_rounds=1, train_config=RECIPE.to_config())


def test_asking_often_is_no_waiting() -> None:
    grid = repeatable_grid()
    for _ in range(50):
        grid.get_node_ids()


@pytest.mark.parametrize("send", [RepeatableGrid.send_and_receive, RepeatableGrid.push_messages])
def test_a_strategy_that_has_sent_something_in_between_has_not_waited(
    send: Callable[[RepeatableGrid, list[Message]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = RepeatableGrid(LocalGrid(build_client_app(tiny_settings()), 3), 0, 3, timeout=100.0)
    grid.partitions()
    clock = itertools.count(step=90)
    monkeypatch.setattr("fl_sim.repeatable_grid.time.monotonic", lambda: next(clock))
    for _ in range(20):
        grid.get_node_ids()
        grid.get_node_ids()
        send(grid, [])
