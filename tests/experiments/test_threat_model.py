"""What the attacker can reach in the private threat model: the clients' updates, and nothing else about the truth."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from flwr.app import RecordDict
from safetensors import safe_open
from torch import Tensor

from attacks.observation import Circumstances, Observation
from attacks.reconstruction_file import load_reconstruction
from experiments.checkpoint import find_checkpoint, load_checkpoint
from experiments.experiment import build_recipe
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings, load_run
from fl_sim.client_app import private_draw
from fl_sim.draws import derive_seed
from fl_sim.images.sources import list_images
from fl_sim.network import build_model, trainable_parameters
from fl_sim.wire import ARRAYS, CLIENT, METRICS, TRAIN_LOSS
from tests.experiments.in_process import Tape, run_in_process
from tests.experiments.made_up_run import tiny_settings

SEED, OTHER_SEED = 7234567890123456781, 4876543210987654323
EVERY_CLIENT = [(server_round, client) for server_round in (1, 2) for client in (0, 1)]


CLASS_CONDITIONAL = ("model.unet.num_class_embeds=5", "client.label_dropout=0.3")
"""Four photographs, and a row for labels that were dropped."""


def settings_with(client_seed: int, *overrides: str) -> ExperimentSettings:
    attack = "attack.args.residual.max_evaluations=3"
    return tiny_settings(f"client.seed={client_seed}", "client.batch_size=2", attack, *CLASS_CONDITIONAL, *overrides)


class Opened:
    """The names of ``folder``'s files that Python opens, each with the rooms of this project that are at work then."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.by: set[tuple[str, str]] = set()

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.folder and isinstance(arguments[0], str | Path):
            path = Path(arguments[0])
            if path.is_relative_to(self.folder):
                self.by |= {(path.name, room) for room in _rooms_at_work()}


def _rooms_at_work() -> Iterator[str]:
    frame = sys._getframe()
    while frame := frame.f_back:
        yield frame.f_globals.get("__name__", "").split(".")[0]


@dataclasses.dataclass
class Recorded:
    directory: RunDirectory
    tape: Tape
    opened: set[tuple[str, str]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    settings, opened = settings_with(SEED), Opened()
    tape = Tape(settings)
    opened.folder = tmp_path_factory.mktemp("recorded")
    sys.addaudithook(opened.hook)
    directory = run_in_process(opened.folder, settings, tape)
    opened.folder = None  # an audit hook cannot be removed
    return Recorded(directory, tape, opened.by)


def test_another_private_seed_with_the_same_replies_changes_no_byte_of_a_reconstruction(
    recorded: Recorded, tmp_path: Path
) -> None:
    settings = settings_with(OTHER_SEED)
    replayed = run_in_process(tmp_path / "replayed", settings, Tape(settings, recorded.tape))
    for server_round, client in EVERY_CLIENT:
        first, second = (
            load_reconstruction(run.reconstruction(server_round, client, "residual"))
            for run in (recorded.directory, replayed)
        )
        assert first.images.numpy().tobytes() == second.images.numpy().tobytes()
        assert first.timesteps.tolist() == second.timesteps.tolist()
        assert first.labels is not None
        assert second.labels is not None
        assert first.labels.tolist() == second.labels.tolist()
        assert _facts(first) == _facts(second)
    digests = [pd.read_parquet(run.rounds)["weights_sha256"].tolist() for run in (recorded.directory, replayed)]
    assert digests[0] == digests[1]
    first, second = (pd.read_parquet(run.leakage_parquet) for run in (recorded.directory, replayed))
    for column in ("timestep", "label"):
        assert first[column].tolist() != second[column].tolist(), "the other seed draws something else"


def test_private_labels_are_read_off_the_update_and_stand_beside_the_truth(recorded: Recorded) -> None:
    leakage = pd.read_parquet(recorded.directory.leakage_parquet)
    assert leakage["label"].between(0, 4).all()
    updates = leakage.groupby(["round", "client"])
    assert (updates["label"].agg(sorted) == updates["label_recovered"].agg(sorted)).all()
    assert "labels recovered exactly" in recorded.directory.report.read_text()


def test_where_the_server_knows_the_noise_clients_tell_it_their_labels(tmp_path: Path) -> None:
    settings = settings_with(SEED, "threat=known", "federation.rounds=1")
    directory = run_in_process(tmp_path / "known", settings)
    for client in (0, 1):
        seen = Observation.load(capture(directory, 1, client))
        truth = private_draw(settings, build_recipe(settings), client, 1).labels
        assert seen.labels is not None
        assert truth is not None
        assert torch.equal(seen.labels, truth)
    leakage = pd.read_parquet(directory.leakage_parquet)
    assert leakage["label"].notna().all()
    assert sorted(leakage["label"]) == sorted(leakage["label_recovered"])


def test_a_reply_holds_nothing_but_the_update_and_what_the_server_asked_for(recorded: Recorded) -> None:
    shapes = {name: tuple(value.shape) for name, value in trainable().items()}
    for (_, client), reply in recorded.tape.replies.items():
        assert set(reply) == {ARRAYS, METRICS, CLIENT}
        assert {name: array.shape for name, array in reply[ARRAYS].items()} == shapes
        assert dict(reply[CLIENT]) == {"partition": client, "device": "cpu"}
        assert {**reply[METRICS], TRAIN_LOSS: 0.0} == {"num-examples": 2, TRAIN_LOSS: 0.0}


def test_a_capture_holds_nothing_but_the_update_and_what_the_server_knew(recorded: Recorded) -> None:
    recipe = build_recipe(settings_with(OTHER_SEED))
    tensors = {f"weights/{name}" for name in trainable()} | {f"update/{name}" for name in trainable()}
    shapes = {name: list(value.shape) for name, value in trainable().items()}
    for server_round, client in EVERY_CLIENT:
        known = Circumstances(
            round=server_round,
            client=client,
            num_examples=2,
            batch_size=2,
            image_shape=recipe.image_shape,
            task=recipe.task,
            model=recipe.model,
        )
        with safe_open(capture(recorded.directory, server_round, client), framework="pt") as file:
            assert set(file.keys()) == tensors
            assert all(file.get_slice(name).get_shape() == shapes[name.partition("/")[2]] for name in tensors)
            assert set(file.metadata()) == {"observation"}
            assert json.loads(file.metadata()["observation"]) == known.model_dump(mode="json")


def test_neither_the_seed_nor_what_is_drawn_from_it_is_in_any_byte(recorded: Recorded) -> None:
    settings = settings_with(SEED)
    for server_round, client in EVERY_CLIENT:
        images, noise, *_ = private_draw(settings, build_recipe(settings), client, server_round)
        seeds = [SEED, *(derive_seed(SEED, purpose, client, server_round) for purpose in ("noise", "images"))]
        secrets = [value.numpy().tobytes() for tensor in (images, noise) for value in (*tensor, *((tensor + 1) / 2))]
        secrets += [
            form for seed in seeds for form in (str(seed).encode(), seed.to_bytes(8), seed.to_bytes(8, "little"))
        ]
        reply = _all_bytes(recorded.tape.replies[server_round, client])
        seen = capture(recorded.directory, server_round, client).read_bytes()
        assert not any(secret in seen or secret in reply for secret in secrets)


def test_no_attack_and_no_strategy_is_at_work_when_the_settings_of_a_run_are_read(recorded: Recorded) -> None:
    at_work = {room for name, room in recorded.opened if name == "config.toml"}
    assert "experiments" in at_work
    assert not at_work & {"attacks", "strategies"}


@pytest.mark.parametrize("preset", ["demo", "demo-16"])
def test_the_bundled_checkpoint_never_saw_a_photograph_that_the_demos_clients_hold(preset: str) -> None:
    settings = load_run(preset)
    trained_on = set(load_checkpoint(find_checkpoint(settings.model.checkpoint)).notes["photographs"])
    data = settings.data
    held = set(list_images(data).photographs)
    assert trained_on
    assert held == set(data.photographs)
    assert not trained_on & held


def capture(directory: RunDirectory, server_round: int, client: int) -> Path:
    return directory.captures / f"round-{server_round:04d}-client-{client:04d}.safetensors"


def trainable() -> dict[str, Tensor]:
    return trainable_parameters(build_model(build_recipe(settings_with(SEED)).model))


def _facts(found: Any) -> dict[str, Any]:
    """All that a reconstruction says beside its tensors and what it took of the machine."""
    return {**vars(found), "images": None, "timesteps": None, "labels": None, "seconds": None, "peak_memory": None}


def _all_bytes(reply: RecordDict) -> bytes:
    arrays = [array.data for record in reply.array_records.values() for array in record.values()]
    others = [dict(record) for record in (*reply.metric_records.values(), *reply.config_records.values())]
    return b"".join(arrays) + repr(others).encode()
