"""A tiny federation, and a Grid that runs its clients in this process."""

import random
from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_sim import diffusion
from fl_sim.config import Settings, load_settings
from fl_sim.wire import Recipe


def tiny_settings(*overrides: str) -> Settings:
    base = {"client": {"seed": 11}, "federation": {"clients": 3}, "data": {"partition": "photo"}}
    return load_settings(Settings, base, overrides)


def tiny_recipe(**changes: Any) -> Recipe:
    model = diffusion.unet_config(16, block_out_channels=(8, 16), norm_num_groups=4)
    return Recipe(**{"model": model, "scheduler": diffusion.scheduler_config(), "image_shape": (3, 16, 16)} | changes)


def weights_recipe(steps: int = 2, optimizer: str = "sgd", momentum: float = 0.0) -> Recipe:
    local = diffusion.LocalOptimizer(name=optimizer, lr=0.01, momentum=momentum)
    return tiny_recipe(update="weights", local_steps=steps, optimizer=local)


def initial_arrays(recipe: Recipe) -> ArrayRecord:
    torch.manual_seed(0)
    return ArrayRecord(diffusion.build_model(recipe.model).state_dict())


def node_context(partition: int) -> Context:
    return Context(
        run_id=1, node_id=partition, node_config={"partition-id": partition}, state=RecordDict(), run_config={}
    )


class LocalGrid(Grid):
    """Random node ids and replies in random order, as Flower has them; ``chance`` seeds both.

    A reason in ``errors`` replaces a client's reply; an empty one loses it.
    """

    def __init__(self, client_app: ClientApp, clients: int, chance: int = 0) -> None:
        source = self.source = random.Random(chance)
        self.client_app = client_app
        self.nodes = {source.getrandbits(63): client for client in source.sample(range(clients), clients)}
        self.errors: dict[int, str] = {}
        self.replies: list[Message] = []

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def set_run(self, run: Run) -> None: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        self.source.shuffle(messages)
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
            client = self.nodes[message.metadata.dst_node_id]
            if message.metadata.message_type == "train" and client in self.errors:
                if self.errors[client]:
                    self.replies.append(Message(Error(code=0, reason=self.errors[client]), reply_to=message))
                continue
            self.replies.append(self.client_app(message, node_context(client)))
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.replies.pop()] if self.replies else []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise NotImplementedError
