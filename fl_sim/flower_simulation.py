"""Where Flower's simulation does something for every client that it need do only for those that are asked.

Flower looks for messages to each client ten times a second, and for each client at all messages: with 10,000 clients a
sweep takes seconds. And it keeps to itself which partition a node has, so that one would have to ask all nodes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

from flwr.app import Message
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend import raybackend

from fl_sim.client_pool import ClientPool

_SWEEP_SECONDS = 0.1


@contextmanager
def simulation(partitions: dict[int, int], ended: threading.Event) -> Iterator[None]:
    """Flower's simulation meanwhile does what this file says.

    Args:
        partitions: gets the nodes, once all are registered: node id -> partition index.
        ended: is set when the server has gone.
    """

    class Pool(ClientPool):
        pass

    Pool.ended = ended
    usual = vce_api._register_nodes, vce_api.add_messages_to_queue, raybackend.BasicActorPool

    def register(*args: Any, **kwargs: Any) -> dict[int, int]:
        nodes = usual[0](*args, **kwargs)
        partitions.update(nodes)
        return nodes

    vce_api._register_nodes, vce_api.add_messages_to_queue = register, deliver  # type: ignore[assignment]
    raybackend.BasicActorPool = Pool  # type: ignore[misc]
    try:
        yield
    finally:
        vce_api._register_nodes, vce_api.add_messages_to_queue, raybackend.BasicActorPool = usual  # type: ignore[misc]


def deliver(state: Any, messages: Queue[Message], nodes: dict[int, int], stopped: threading.Event) -> None:
    """Put the messages for ``nodes`` into the queue of the clients' processes, until it is stopped."""
    while not stopped.is_set():
        with state.lock:
            waiting = {
                message.metadata.dst_node_id
                for message in state.message_ins_store.values()
                if message.metadata.delivered_at == ""
            }
        for node in sorted(waiting & nodes.keys(), key=nodes.__getitem__):
            for message in state.get_message_ins(node_id=node, limit=1):
                messages.put(message)
        stopped.wait(_SWEEP_SECONDS)
