"""docs/defences.md, done as it says: its SecAgg+ and its defence of one's own are written out and run."""

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.common import bytes_to_ndarray
from torch import Tensor
from typer.testing import CliRunner

from attacks.observation import DefenceDisclosure, Observation
from attacks.registry import create
from experiments.cli import app
from fl_sim import registry
from fl_sim.client_app import local_training, private_draw
from fl_sim.defences.defence import Defence as ClientDefence
from fl_sim.defences.registry import DEFENCES
from fl_sim.defences.registry import create as create_defence
from fl_sim.local_grid import Client
from tests.experiments.in_process import run_in_process
from tests.experiments.made_up_run import tiny_settings
from tests.fl_sim.federations import LocalGrid
from tests.pages.pages import pages

PAGE = pages()["docs/defences.md"]
FILES = PAGE.files()
[REGISTRATION] = PAGE.of_kind("toml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's files, where Python finds them."""
    folder = tmp_path_factory.mktemp("page")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


class Wire(LocalGrid):
    """A Grid that keeps everything that reaches the server."""

    def __init__(self, client_app: Client, clients: int) -> None:
        super().__init__(client_app, clients)
        self.received: list[tuple[int, RecordDict]] = []

    def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
            message.content = deepcopy(message.content)
            node = message.metadata.dst_node_id
            replies.append(self.client_app(message, self.contexts[node]))
            self.received.append((self.nodes[node], deepcopy(replies[-1].content)))
        return replies


class Secured:
    """One round under SecAgg+, what the server received of it, and what the clients had to hide."""

    def __init__(self, folder: Path) -> None:
        client, server = (importlib.import_module(name) for name in ("secagg_client", "secagg_server"))
        self.server = server
        self.grid = Wire(client.app, 4)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            server.app(self.grid, Context(1, 0, {}, RecordDict(), {}))
        self.observation = Observation.load(folder / "sum.safetensors")
        self.trained = [self._trained(client, number) for number in range(4)]

    def _trained(self, module: ModuleType, client: int) -> dict[str, Tensor]:
        draw = private_draw(module.SETTINGS, module.RECIPE, client, 1)
        return local_training(module.RECIPE, self.observation.weights, draw, "cpu")[0]

    def masked(self) -> dict[int, np.ndarray]:
        """What each client sent in the place of its weights, mod 2**32."""
        return {
            client: np.concatenate(
                [bytes_to_ndarray(value).flatten() for value in content["secaggplus_configs"]["masked_params"]]
            )
            for client, content in self.grid.received
            if "masked_params" in content["secaggplus_configs"]
        }


@pytest.fixture(scope="module")
def secured(folder: Path) -> Secured:
    return Secured(folder)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.double().flatten() for value in tensors.values()])


def test_no_message_to_the_server_holds_weights_but_masked_ones(secured: Secured) -> None:
    stages: dict[tuple[str, ...], int] = {}
    for _, content in secured.grid.received:
        assert not any(len(arrays) for arrays in content.array_records.values())
        keys = tuple(content["secaggplus_configs"])
        stages[keys] = stages.get(keys, 0) + 1
    assert stages == dict.fromkeys((("pk1", "pk2"), ("dsts", "ctxts"), ("masked_params",), ("nids", "shares")), 4)


def test_masked_weights_are_uniform_and_tell_nothing_of_the_weights(secured: Secured) -> None:
    masked = secured.masked()
    assert sorted(masked) == [0, 1, 2, 3]
    for client, vector in masked.items():
        weights = flat({name: secured.trained[client][name] for name in secured.server.WEIGHTS}).numpy()
        values = vector[-len(weights) :].astype(np.float64)  # the first entry is the client's weight in the mean
        histogram = np.histogram(values, bins=16, range=(0, 2**32))[0] / len(values)
        assert abs(histogram - 1 / 16).max() < 5 / np.sqrt(16 * len(values))
        assert abs(np.corrcoef(values, weights)[0, 1]) < 5 / np.sqrt(len(values))
    first, second = (masked[client].astype(np.float64) for client in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(len(first))


def test_the_server_ends_up_with_the_sum_and_the_rounding_that_it_knows_of(secured: Secured) -> None:
    observation = secured.observation
    assert (observation.circumstances.num_clients, observation.circumstances.client) == (4, -1)
    before, names = observation.weights, observation.update
    expected = sum(flat({name: after[name].double() - before[name] for name in names}) for after in secured.trained)
    assert isinstance(expected, Tensor)
    error = flat(observation.update) - expected
    assert observation.circumstances.defence == DefenceDisclosure(noise_std=secured.server.ROUNDING)
    assert float(error.std()) == pytest.approx(2 * secured.server.ROUNDING, rel=0.05)
    assert float(expected.std()) > 10 * float(error.std())
    assert max(float(value.abs().max()) for value in observation.weights.values()) < secured.server.LARGEST_WEIGHT
    create("residual").check(observation)


def test_a_defence_of_ones_own_is_short_and_works_in_a_run_by_its_path(folder: Path, tmp_path: Path) -> None:
    assert len(FILES["random_mask.py"].splitlines()) < 40
    settings = tiny_settings(
        "attack.name=tests.attacks.toy_attacks:Guess",
        "defence.name=random_mask:RandomMask",
        "defence.args.chance=0.25",
        "federation.rounds=1",
        "utility.every=0",
    )
    directory = run_in_process(tmp_path / "run", settings)
    for capture in directory.captures.iterdir():
        seen = Observation.load(capture)
        sent = flat(seen.update) != 0
        assert float(sent.float().mean()) == pytest.approx(0.25, abs=5 * 0.5 / len(sent) ** 0.5)
        assert seen.circumstances.defence == DefenceDisclosure(sparsified=True)
    assert set(pd.read_parquet(directory.leakage_parquet)["defence_args"]) == {'{"chance":0.25}'}


def test_its_registration_makes_it_known_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = "fl_sim.defences"
    lines = tomllib.loads(REGISTRATION.text)["project"]["entry-points"][group]
    entries = [EntryPoint(name, value, group) for name, value in lines.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == "fl_sim.defences" else [])
    registry.plugins.cache_clear()
    try:
        found = create_defence("random-mask")
        assert isinstance(found, ClientDefence)
        assert found.name == "random-mask"
        listed = CliRunner().invoke(app, ["list"]).output
        assert "random-mask" in listed
        assert "chance = 0.1" in listed
    finally:
        registry.plugins.cache_clear()


def test_the_page_has_every_defence_and_every_argument() -> None:
    rows = {row[1]: row[0] for row in re.finditer(r"^\| `(.+?)` \|.*$", PAGE.text, re.MULTILINE)}
    for name in DEFENCES.names():
        assert all(f"`{argument}`" in rows[name] for argument in DEFENCES.find(name).model_fields)
