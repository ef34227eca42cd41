"""Federated learning without a server: peers train, send to their neighbours, and average what they receive.

What peers send decides the algorithm:

- new weights: x_i <- sum_j W_ij z_j, where z_j are the weights of peer j after its local steps. Decentralised SGD
  (Lian et al. 2017, arXiv 1705.09056), in the order adapt-then-combine of decentralised federated averaging (Sun et al.
  2021, arXiv 2104.11375);
- gradients: x_i <- x_i - lr sum_j W_ij g_j, where g_j is the gradient at peer j's own weights. The average model takes
  the step that FedSGD takes, but nothing pulls the peers' models together: they drift apart, because one
  multiplication by W does not mix the gradients completely.

W is doubly stochastic (strategies/topology.py), so every peer's update weighs the same in the average of all models.
"""

from collections.abc import Iterable, Mapping, Sequence
from logging import INFO
from typing import Any, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from flwr.supercore import log
from torch import Tensor

from fl_sim.wire import ARRAYS, CONFIG, NUM_EXAMPLES, ROUND
from strategies.errors import StrategyError
from strategies.topology import Topology, adjacency, among, metropolis_hastings

State = dict[str, Tensor]
"""A model, or what a peer sends of it, by parameter name."""


class Gossip(Strategy):
    """Simulates peers on a server: it relays their messages, computes each peer's step, and is not curious itself.

    Every node of the Grid is a peer, in the order in which the Grid first names them; all start from the same weights.
    A peer that does not answer in a round keeps its model, and its neighbours average without it. The global model
    that this returns is the average over the peers, which none of them has.

    Args:
        topology: the graph of neighbours.
        peers: how many there are.
        degree: neighbours of each peer in a ``regular`` graph.
        seed: of the ``regular`` graph.
        update: what clients send.
        lr: learning rate of a peer's step along the averaged gradient; unused with ``weights``.

    Raises:
        StrategyError: if there is no such graph; in ``configure_train``, if the Grid has not as many nodes.
    """

    def __init__(
        self,
        topology: Topology = "ring",
        peers: int = 8,
        degree: int = 4,
        seed: int = 0,
        update: Literal["gradient", "weights"] = "gradient",
        lr: float = 0.1,
    ) -> None:
        self.mixing = metropolis_hastings(adjacency(topology, peers, degree, seed))
        self.models: list[State] = []
        self._topology, self._update, self._lr = topology, update, lr
        self._peers: dict[int, int] = {}

    def neighbours(self, peer: int) -> list[int]:
        """The neighbours of ``peer``, in order; it is not its own."""
        return [other for other in _heard(self.mixing[peer]) if other != peer]

    def messages(self, replies: Iterable[Message]) -> dict[int, Message]:
        """The replies without error by peer, in the order of the peers."""
        return dict(sorted((self._peers[r.metadata.src_node_id], r) for r in replies if not r.has_error()))

    def step(self, model: State, row: Tensor, sent: Mapping[int, State]) -> State:
        """A peer's next model: sum_j W_ij z_j with weights, x_i - lr sum_j W_ij g_j with gradients.

        Args:
            model: x_i, the peer's model.
            row: W_i, its mixing weights [peers].
            sent: by peer j, what it sent: z_j or g_j. Parameters that nobody sent stay as they are.
        """
        mixed: State = {}
        for peer in _heard(row):
            for name, value in sent[peer].items():
                share = value.float() * row[peer].item()
                mixed[name] = mixed[name] + share if name in mixed else share
        if self._update == "gradient":
            mixed = {name: model[name] - self._lr * value for name, value in mixed.items()}
        return {**model, **mixed}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every peer to train from its own weights; all start from ``arrays``."""
        nodes = list(grid.get_node_ids())
        if not self._peers:
            if len(nodes) != len(self.mixing):
                raise StrategyError(f"{len(nodes)} nodes for a graph of {len(self.mixing)} peers")
            self._peers = {node: peer for peer, node in enumerate(nodes)}
        if not self.models:
            self.models = [arrays.to_torch_state_dict() for _ in nodes]
        config[ROUND] = server_round
        return [
            Message(RecordDict({ARRAYS: ArrayRecord(self.models[peer]), CONFIG: config}), node, MessageType.TRAIN)
            for node, peer in self._peers.items()
            if node in nodes
        ]

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002 (Flower's signature)
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let every peer that replied take its step; returns the average of all models, and of their metrics."""
        messages = self.messages(replies)
        if not messages:
            return None, None
        sent = {peer: state_in(message) for peer, message in messages.items()}
        mixing = among(self.mixing, sent)
        self.models = [
            self.step(model, mixing[peer], sent) if peer in sent else model for peer, model in enumerate(self.models)
        ]
        metrics = aggregate_metricrecords([message.content for message in messages.values()], NUM_EXAMPLES)
        return ArrayRecord(average(self.models)), metrics

    def configure_evaluate(self, *_: Any, **__: Any) -> Iterable[Message]:
        """Nobody evaluates."""
        return []

    def aggregate_evaluate(self, *_: Any, **__: Any) -> MetricRecord | None:
        """Nobody evaluated."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What is remembered from round to round: the peers' models."""
        return {"models": self.models}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what ``state_dict`` returned."""
        self.models = state["models"]

    def summary(self) -> None:
        """Log the graph and what travels on it."""
        log(INFO, "\t├──> Gossip: %s of %s peers, exchanging %s", self._topology, len(self.mixing), self._update)


def state_in(message: Message) -> State:
    """What a peer sent: the one ArrayRecord of its reply."""
    return next(iter(message.content.array_records.values())).to_torch_state_dict()


def average(states: Sequence[State]) -> State:
    """The mean over states, entry by entry."""
    return {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}


def _heard(row: Tensor) -> list[int]:
    """Peers with a positive mixing weight, in order."""
    return row.nonzero().flatten().tolist()
