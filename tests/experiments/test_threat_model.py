"""What the attacker can reach in the private threat model: the clients' updates, and nothing else about the truth."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from safetensors import safe_open

from attacks.observation import Circumstances, Observation
from attacks.reconstruction_file import load_reconstruction
from experiments.checkpoint import BUNDLED, load_checkpoint
from experiments.experiment import build_recipe
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings, load_run
from fl_sim.client_app import build_client_app, private_draw
from fl_sim.draws import derive_seed
from fl_sim.images import load_images
from fl_sim.wire import ARRAYS, CLIENT, CONFIG, DEVICE, METRICS, NUM_EXAMPLES, PARTITION, ROUND, TRAIN_LOSS
from tests.experiments.in_process import Client, run_in_process
from tests.experiments.made_up_run import tiny_settings

SEED, OTHER_SEED = 7234567890123456781, 4876543210987654323
ROOMS = ("fl_sim", "strategies", "attacks", "experiments")


def settings_with(client_seed: int) -> ExperimentSettings:
    return tiny_settings(
        f"client.seed={client_seed}", "client.batch_size=2", "attack.args.residual.max_evaluations=6"
    )


@dataclasses.dataclass
class Tape:
    """Clients whose train replies are kept, by round and client, and clients that only repeat them."""

    replies: dict[tuple[int, int], RecordDict] = dataclasses.field(default_factory=dict)

    def recording(self, honest: Client) -> Client:
        def client(message: Message, context: Context) -> Message:
            reply = honest(message, context)
            if message.metadata.message_type == "train":
                self.replies[_who(message, context)] = deepcopy(reply.content)
            return reply

        return client

    def replaying(self, honest: Client) -> Client:
        def client(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "train":
                return Message(deepcopy(self.replies[_who(message, context)]), reply_to=message)
            return honest(message, context)

        return client


def _who(message: Message, context: Context) -> tuple[int, int]:
    return int(message.content.config_records[CONFIG][ROUND]), int(context.node_config["partition-id"])


class Opened:
    """Which files of a folder Python opened, each with the innermost module of this project that had it opened."""

    folder: Path | None = None
    seen: set[tuple[str, str]] = set()  # noqa: RUF012 (one for all: an audit hook cannot be removed)

    @classmethod
    def hook(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or cls.folder is None or not isinstance(arguments[0], str | Path):
            return
        path = Path(arguments[0])
        if path.is_relative_to(cls.folder):
            cls.seen.add((path.name, next(_modules(), "")))


def _modules() -> Iterator[str]:
    frame = sys._getframe()
    while frame := frame.f_back:
        name = frame.f_globals.get("__name__", "")
        if name.split(".")[0] in ROOMS:
            yield name


sys.addaudithook(Opened.hook)


@dataclasses.dataclass
class Recorded:
    directory: RunDirectory
    replies: dict[tuple[int, int], RecordDict]
    opened: set[tuple[str, str]]


def record(folder: Path, client_seed: int) -> Recorded:
    settings, tape = settings_with(client_seed), Tape()
    Opened.folder, Opened.seen = folder, set()
    directory = run_in_process(folder, settings, tape.recording(build_client_app(settings)))
    Opened.folder = None
    return Recorded(directory, tape.replies, Opened.seen)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    with pytest.MonkeyPatch.context() as patch:
        _stand_for_a_run(patch)
        return record(tmp_path_factory.mktemp("recorded"), SEED)


