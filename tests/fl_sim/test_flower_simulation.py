"""Ten thousand clients cost no more than those that are asked."""

import threading
from queue import Queue
from types import SimpleNamespace
from typing import Any

from flwr.app import Message
from flwr.server.superlink.fleet.vce import vce_api

from fl_sim.client_app import build_client_app
from fl_sim.flower_simulation import deliver, simulation
from fl_sim.repeatable_grid import NumberedGrid, RepeatableGrid
from tests.fl_sim.federations import LocalGrid, tiny_settings


class State:
    """Of Flower's server: messages to some of many nodes."""

    def __init__(self, *receivers: int) -> None:
        self.lock = threading.Lock()
        self.message_ins_store = {number: _to(node) for number, node in enumerate(receivers)}
        self.asked_for: list[int] = []

    def get_message_ins(self, node_id: int, limit: int) -> list[Any]:
        assert limit == 1
        self.asked_for.append(node_id)
        found = [
            m
            for m in self.message_ins_store.values()
            if (m.metadata.dst_node_id, m.metadata.delivered_at) == (node_id, "")
        ]
        found[0].metadata.delivered_at = "now"
        return found[:1]


def _to(node: int) -> Any:
    return SimpleNamespace(metadata=SimpleNamespace(dst_node_id=node, delivered_at=""))


def test_messages_are_looked_for_where_there_are_some() -> None:
    state, messages, stopped = State(40, 7, 40), Queue[Message](), threading.Event()
    nodes = {node: number for number, node in enumerate(reversed(range(10_000)))}
    thread = threading.Thread(target=deliver, args=(state, messages, nodes, stopped))
    thread.start()
    got = [messages.get(timeout=10).metadata.dst_node_id for _ in range(3)]
    stopped.set()
    thread.join()
    assert got == [40, 7, 40], "in the order of the partitions, one each in a sweep"
    assert state.asked_for == got


def test_no_client_is_asked_for_a_number_that_is_known() -> None:
    silent = LocalGrid(build_client_app(tiny_settings()), 3)
    numbers: dict[int, int] = {}
    grid = RepeatableGrid(NumberedGrid(silent, numbers), 0, 3, timeout=1.0)
    silent.push_messages = None  # type: ignore[method-assign,assignment]
    threading.Timer(
        0.1, numbers.update, [silent.nodes]
    ).start()  # Flower may tell of the nodes before it tells their numbers
    assert list(grid.partitions().values()) == [0, 1, 2]
    assert grid.partitions() == silent.nodes


def test_flower_is_as_it_was_afterwards() -> None:
    usual = vce_api._register_nodes, vce_api.add_messages_to_queue
    with simulation({}, threading.Event()):
        assert vce_api.add_messages_to_queue is deliver
    assert (vce_api._register_nodes, vce_api.add_messages_to_queue) == usual
