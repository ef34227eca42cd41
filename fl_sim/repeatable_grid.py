"""A Grid on which equal settings give equal runs, and which records who took part in every round."""

import logging
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_sim.draws import derive_seed
from fl_sim.errors import one_line
from fl_sim.reply_check import usual_names, why_unusable
from fl_sim.wire import CLIENT, DEVICE, METRICS, PARTITION, TRAIN_LOSS

POLL_SECONDS = 0.05
"""Wait between two looks for nodes or replies."""

POLLS = 5
"""Requests for the nodes, without a message in between, above which a strategy counts as waiting for more nodes."""


class FederationError(RuntimeError):
    """The federation cannot go on: no client answered, or the backend failed."""


@dataclass(frozen=True)
class RoundLog:
    """Who took part in one training round; clients are partition indices, in order.

    ``losses`` and ``devices`` are in the order of ``replied``; ``failed`` says why the others did not reply.
    """

    round: int
    asked: tuple[int, ...]
    replied: tuple[int, ...]
    losses: tuple[float, ...]
    devices: tuple[str, ...]
    failed: dict[int, str]


class GridProxy(Grid):
    """A Grid that delegates everything to another one; subclasses change a part of it."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    @property
    def run(self) -> Run:
        """Delegates."""
        return self.grid.run

    def set_run(self, run: Run) -> None:
        """Delegates."""
        self.grid.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Delegates."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Delegates."""
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Delegates."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Delegates."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Delegates."""
        return self.grid.send_and_receive(messages, timeout=timeout)


class NumberedGrid(GridProxy):
    """A Grid of which it is known which partition each node has; nobody needs to ask.

    Attributes:
        numbers: node id -> partition index, of the nodes that have registered.
    """

    def __init__(self, grid: Grid, numbers: Mapping[int, int]) -> None:
        super().__init__(grid)
        self.numbers = numbers


class RepeatableGrid(GridProxy):
    """A Grid on which equal settings give equal runs, and which raises an error where Flower would only log one.

    Flower's node ids are random, and replies arrive in any order. This Grid waits for all ``clients``, asks each once
    for its partition index where nobody knows it (NumberedGrid), and returns node ids and replies in that order.
    Flower's strategies sample clients with Python's global ``random`` and draw noise from numpy's; both are reseeded
    from (``seed``, "sampling", round) each time a strategy asks for the nodes.

    Attributes:
        rounds: one RoundLog per training round so far.
    """

    def __init__(self, grid: Grid, seed: int, clients: int, timeout: float = 600.0) -> None:
        """``timeout``: the most seconds that a round may take.

        It also limits the wait for the clients before the first round, and that of a strategy for more clients.
        """
        super().__init__(grid)
        self.seed = seed
        self.clients = clients
        self.timeout = timeout
        self.rounds: list[RoundLog] = []
        self._partitions: dict[int, int] = {}
        self._asked_at: list[float] = []

    def get_node_ids(self) -> list[int]:
        """Node ids in partition order; reseeds the sampling for the next round.

        Raises:
            FederationError: if a strategy asks more than POLLS times for longer than the timeout, and sends nothing.
        """
        partitions = self.partitions()
        self._asked_at.append(time.monotonic())
        if len(self._asked_at) > POLLS and self._asked_at[-1] - self._asked_at[0] > self.timeout:
            raise FederationError(
                f"round {len(self.rounds) + 1}: the strategy has waited {self.timeout:g} s for more clients than the "
                f"{self.clients} there are"
            )
        reseed_sampling(self.seed, len(self.rounds) + 1)
        return list(partitions)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Delegates."""
        self._asked_at = []
        return super().push_messages(messages)

    def partitions(self) -> dict[int, int]:
        """Node id -> partition index, in partition order; waits for all clients the first time.

        Raises:
            FederationError: if not all register and answer in time, or their indices are not 0..clients-1, each once.
        """
        if not self._partitions:
            nodes = self._wait_for_nodes()
            if isinstance(self.grid, NumberedGrid):
                self._partitions = dict(sorted(self.grid.numbers.items(), key=lambda item: item[1]))
                return self._partitions
            queries = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
            replies = self._exchange(queries, self.timeout)
            _stop_if_a_process_died(replies)
            stated = {
                reply.metadata.src_node_id: reply.content.config_records.get(CLIENT, ConfigRecord()).get(PARTITION)
                for reply in replies
                if not reply.has_error()
            }
            answers = {node: number for node, number in stated.items() if isinstance(number, int)}
            if len(answers) < self.clients:
                reason = next((_reason(reply) for reply in replies if reply.has_error()), "no answer")
                raise FederationError(f"{len(answers)} of {self.clients} clients gave a partition index: {reason}")
            if sorted(answers.values()) != list(range(self.clients)):
                raise FederationError(
                    f"clients gave the partition indices {sorted(answers.values())}: federation.clients = "
                    f"{self.clients} needs as many SuperNodes, with the indices 0..{self.clients - 1}"
                )
            self._partitions = dict(sorted(answers.items(), key=lambda item: item[1]))
        return self._partitions

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send, and return the replies in partition order; a training round is appended to ``rounds``.

        Raises:
            FederationError: if no client trained, or a client's process died and the backend does not restart it.
        """
        messages = list(messages)
        self._asked_at = []
        if not messages:
            return []
        partitions = self.partitions()
        training = messages[0].metadata.message_type.split(".")[0] == MessageType.TRAIN
        asked = [message.metadata.dst_node_id for message in messages]
        replies = self._exchange(messages, self.timeout if timeout is None else min(timeout, self.timeout))
        if training:
            replies = _without_unusable(replies, messages, partitions)
        replies.sort(key=lambda reply: partitions[reply.metadata.src_node_id])
        if training:
            self.rounds.append(_round_log(len(self.rounds) + 1, asked, replies, partitions))
        _stop_if_a_process_died(replies)
        if training and not self.rounds[-1].replied:
            reasons = self.rounds[-1].failed
            client = min(reasons)
            raise FederationError(f"round {len(self.rounds)}: no client trained; client {client}: {reasons[client]}")
        return replies

    def _wait_for_nodes(self) -> list[int]:
        end = time.monotonic() + self.timeout
        logging.getLogger("flwr").info("waiting for %d clients (SuperNodes), at most %g s", self.clients, self.timeout)
        while len(nodes := self._registered()) < self.clients:
            if time.monotonic() > end:
                raise FederationError(f"{len(nodes)} of {self.clients} clients registered within {self.timeout:g} s")
            time.sleep(POLL_SECONDS)
        return nodes

    def _registered(self) -> list[int]:
        """The nodes that have registered, and whose numbers are known where they are to be."""
        nodes = list(self.grid.get_node_ids())
        return (
            nodes if not isinstance(self.grid, NumberedGrid) else [node for node in nodes if node in self.grid.numbers]
        )

    def _exchange(self, messages: Sequence[Message], timeout: float) -> list[Message]:
        """Push and poll, as Flower's own Grids do, but at less than half their interval."""
        end = time.monotonic() + timeout
        for message in messages:
            message.metadata.ttl = timeout
        waiting = set(self.grid.push_messages(messages))
        replies: list[Message] = []
        while waiting:
            arrived = list(self.grid.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            if not arrived:  # replies that arrived in time count even if the server polls late
                if time.monotonic() > end:
                    break
                time.sleep(POLL_SECONDS)
        return replies


def reseed_sampling(seed: int, server_round: int) -> None:
    """Seed Python's and numpy's global generators, with which strategies sample clients and draw noise."""
    derived = derive_seed(seed, "sampling", server_round)
    random.seed(derived)
    np.random.seed(derived % 2**32)


def _without_unusable(
    replies: Iterable[Message], messages: Iterable[Message], partitions: dict[int, int]
) -> list[Message]:
    """The replies, in the place of those that cannot be used an error that says why."""
    asked, replies, checked = {message.metadata.dst_node_id: message for message in messages}, list(replies), []
    sent = next(iter(asked.values())).content
    usual = usual_names((reply.content for reply in replies if not reply.has_error()), sent)
    for reply in replies:
        node = reply.metadata.src_node_id
        reason = None if reply.has_error() else why_unusable(reply.content, asked[node], partitions[node], usual)
        refused = None if reason is None else Error(ErrorCode.UNKNOWN, reason)
        checked.append(reply if refused is None else Message(refused, reply_to=asked[node]))
    return checked


def _round_log(number: int, asked: Sequence[int], replies: Sequence[Message], partitions: dict[int, int]) -> RoundLog:
    trained = [reply for reply in replies if not reply.has_error()]
    failed = {partitions[node]: "no reply in time" for node in asked}
    failed |= {partitions[reply.metadata.src_node_id]: _reason(reply) for reply in replies if reply.has_error()}
    for reply in trained:
        del failed[partitions[reply.metadata.src_node_id]]
    return RoundLog(
        round=number,
        asked=tuple(sorted(partitions[node] for node in asked)),
        replied=tuple(partitions[reply.metadata.src_node_id] for reply in trained),
        losses=tuple(float(str(reply.content.metric_records[METRICS][TRAIN_LOSS])) for reply in trained),
        devices=tuple(str(reply.content.config_records[CLIENT][DEVICE]) for reply in trained),
        failed=dict(sorted(failed.items())),
    )


def _stop_if_a_process_died(replies: Sequence[Message]) -> None:
    """Raise FederationError if a client's process died for good.

    This happens under ``flwr run``, where Ray is not told to restart it. Flower's actor pool would go on using the dead
    actor, and every later round would fail with no more than a log line.
    """
    for reply in replies:
        if reply.has_error() and "ActorDiedError" in str(reply.error.reason):
            raise FederationError(f"a client process died: {_reason(reply)}")


def _reason(reply: Message) -> str:
    """Why a client did not answer, in one line, without the traceback that Flower and Ray put around an exception."""
    return one_line(str(reply.error.reason).rpartition("ClientAppException occurred. Message: ")[2].removesuffix("'>"))
