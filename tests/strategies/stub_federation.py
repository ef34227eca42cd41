"""A federation in one process: a Grid that answers train messages with made-up updates."""

import hashlib
import random
from collections.abc import Callable, Iterable

import torch
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fl_sim.diffusion import DiffusionTask, scheduler_config
from fl_sim.network import LocalOptimizer, build_model, unet_config
from fl_sim.wire import Recipe, pack_reply

NODES = (77, 305, 42, 101)
MODEL = unet_config(8, block_out_channels=(8,), norm_num_groups=4)
GRADIENTS = Recipe(model=MODEL, task=DiffusionTask.on(scheduler_config()), image_shape=(3, 8, 8))
WEIGHTS = GRADIENTS.model_copy(update={"update": "weights", "optimizer": LocalOptimizer(lr=0.01)})

Client = Callable[[Message, int, int], RecordDict | Error]


def initial_arrays() -> ArrayRecord:
    torch.manual_seed(0)
    return ArrayRecord(dict(build_model(MODEL).state_dict()))


def made_up_update(sent: ArrayRecord, node: int, server_round: int, update: str) -> dict[str, torch.Tensor]:
    """Noise as gradient, or the weights that were sent plus some of it."""
    generator = torch.Generator().manual_seed(1000 * node + server_round)
    weights = sent.to_torch_state_dict()
    noise = {name: 0.01 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    return noise if update == "gradient" else {name: weights[name] + value for name, value in noise.items()}


def client_of(update: str) -> Client:
    """Clients that state a partition of their own: their place in NODES."""

    def answer(message: Message, node: int, server_round: int) -> RecordDict:
        sent = next(iter(message.content.array_records.values()))
        return pack_reply(made_up_update(sent, node, server_round, update), 1 + node % 3, 0.5, NODES.index(node), "cpu")

    return answer


class StubGrid(Grid):
    """Delivers every message to ``client`` at once; evaluation is answered with a fixed metric."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def get_node_ids(self) -> list[int]:
        return list(NODES)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        server_round = int(next(iter(message.content.config_records.values()))["server-round"])
        if message.metadata.message_type == "evaluate":
            return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 1.0})}), reply_to=message)
        return Message(self.client(message, message.metadata.dst_node_id, server_round), reply_to=message)

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> None:
        raise NotImplementedError

    def create_message(self, *_: object, **__: object) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise NotImplementedError


def run(strategy: Strategy, recipe: Recipe, client: Client | None = None, rounds: int = 3) -> tuple[list[str], Result]:
    """SHA-256 of the global weights before the first and after every round, and Flower's result."""
    random.seed(0)  # Flower samples clients with it, and sums in the order of the sample
    digests: list[str] = []

    def note(_: int, arrays: ArrayRecord) -> None:
        joined = b"".join(name.encode() + array.data for name, array in sorted(arrays.items()))
        digests.append(hashlib.sha256(joined).hexdigest())

    result = strategy.start(
        StubGrid(client or client_of(recipe.update)),
        initial_arrays(),
        num_rounds=rounds,
        train_config=recipe.to_config(),
        evaluate_fn=note,
    )
    return digests, result
