"""A tiny federation, and a Grid that runs its clients in this process."""

import random
from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_sim import local_grid, network
from fl_sim.client_app import build_client_app
from fl_sim.config import Settings
from fl_sim.diffusion import DiffusionTask, scheduler_config
from fl_sim.local_grid import Client
from fl_sim.repeatable_grid import RepeatableGrid
from fl_sim.settings_file import load_settings
from fl_sim.wire import Recipe


def tiny_settings(*overrides: str) -> Settings:
    base = {"client": {"seed": 11}, "federation": {"clients": 3}, "data": {"partition": "photo"}}
    return load_settings(Settings, base, overrides)


def tiny_recipe(**changes: Any) -> Recipe:
    model = network.unet_config(16, block_out_channels=(8, 16), norm_num_groups=4)
    return Recipe(
        **{"model": model, "task": DiffusionTask.on(scheduler_config()), "image_shape": (3, 16, 16)} | changes
    )


def weights_recipe(steps: int = 2, optimizer: str = "sgd", momentum: float = 0.0) -> Recipe:
    local = network.LocalOptimizer(name=optimizer, lr=0.01, momentum=momentum)
    return tiny_recipe(update="weights", local_steps=steps, optimizer=local)


RECIPE = weights_recipe()


def initial_arrays(recipe: Recipe) -> ArrayRecord:
    torch.manual_seed(0)
    return ArrayRecord(network.build_model(recipe.model).state_dict())


def node_context(partition: int) -> Context:
    return Context(
        run_id=1, node_id=partition, node_config={"partition-id": partition}, state=RecordDict(), run_config={}
    )


class LocalGrid(local_grid.LocalGrid):
    """Random node ids and replies in random order, as Flower has them; ``chance`` seeds both.

    Replies come one by one. A reason in ``errors`` replaces a client's reply; an empty one loses it.
    """

    def __init__(self, client_app: Client, clients: int, chance: int = 0) -> None:
        generator = self.generator = random.Random(chance)
        super().__init__(client_app, [generator.getrandbits(63) for _ in range(clients)])
        self.errors: dict[int, str] = {}

    def get_node_ids(self) -> list[int]:
        return self.generator.sample(list(self.nodes), len(self.nodes))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        self.generator.shuffle(messages)
        return super().push_messages(messages)

    def answer(self, message: Message) -> Message | None:
        reason = self.errors.get(self.nodes[message.metadata.dst_node_id])
        if message.metadata.message_type != "train" or reason is None:
            return super().answer(message)
        return Message(Error(code=0, reason=reason), reply_to=message) if reason else None

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        arrived = super().pull_messages(message_ids)
        self.replies = arrived[1:] + self.replies
        return arrived[:1]


def fed_avg(grid: Grid, rounds: int = 2, clients: int = 2) -> dict[str, torch.Tensor]:
    """Final weights of FedAvg with so many of three clients in each round."""
    strategy = FedAvg(fraction_train=clients / 3 + 0.01, fraction_evaluate=0.0)
    result = strategy.start(grid, initial_arrays(RECIPE), num_rounds=rounds, train_config=RECIPE.to_config())
    return result.arrays.to_torch_state_dict()


def repeatable_grid(seed: int = 0, chance: int = 0) -> RepeatableGrid:
    return RepeatableGrid(LocalGrid(build_client_app(tiny_settings()), 3, chance), seed, 3, timeout=1.0)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)
