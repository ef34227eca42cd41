"""A federation in one process: a Grid whose clients answer at once, one after the other, without Ray."""

from collections.abc import Callable, Iterable
from itertools import count

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from typing_extensions import override

RUN = 1

Client = Callable[[Message, Context], Message]
"""A ClientApp, or anything that is called like one."""


class LocalGrid(Grid):
    """A Grid that calls the clients in this process. They keep their state from round to round; errors pass through.

    Attributes:
        nodes: node id -> client, a partition index from 0.
    """

    def __init__(self, client_app: Client, node_ids: Iterable[int]) -> None:
        """``node_ids`` are those of clients 0, 1, and so on."""
        self.client_app = client_app
        self.nodes = {node: client for client, node in enumerate(node_ids)}
        self.contexts = {
            node: Context(RUN, node, {"partition-id": client}, RecordDict(), {}) for node, client in self.nodes.items()
        }
        self.replies: list[Message] = []
        self._numbers = count()
        _be_within_a_run()

    @property
    @override
    def run(self) -> Run:
        return Run.create_empty(RUN)

    @override
    def set_run(self, run: Run) -> None: ...

    @override
    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    @override
    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    @override
    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(str(next(self._numbers)))
            message.metadata.__dict__["_message_id"] = ids[-1]
            reply = self.answer(message)
            self.replies += [] if reply is None else [reply]
        return ids

    def answer(self, message: Message) -> Message | None:
        """The client's reply to a message; None if it does not answer."""
        return self.client_app(message, self.contexts[message.metadata.dst_node_id])

    @override
    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages so far; each is returned once."""
        ids = set(message_ids)
        replies = [reply for reply in self.replies if reply.metadata.reply_to_message_id in ids]
        self.replies = [reply for reply in self.replies if reply not in replies]
        return replies

    @override
    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))


def _be_within_a_run() -> None:
    """Begin a run unless Flower's own entry points have: only within a run can messages be made."""
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:
        TaskIdentity.task_id = TaskIdentity.run_id = RUN
        TaskIdentity.node_id = SUPERLINK_NODE_ID
