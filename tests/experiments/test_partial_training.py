"""Runs in which clients train and send a part of the model only, attacked, with clients and attacks in this process."""

from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message
from safetensors.torch import load_file

from attacks.observation import Observation
from experiments.checkpoint import load_checkpoint
from experiments.experiment import prepare
from experiments.leakage import read_leakage
from fl_sim.client_app import build_client_app
from tests.experiments.in_process import run_in_process
from tests.experiments.made_up_run import tiny_settings

GUESSING = "attack.name=tests.attacks.toy_attacks:Guess"
TIME_AND_OUTPUT = ["client.trainable=['time_embedding.*', 'conv_out.*']"]
ADAPTERS = ["client.lora.rank=2", "client.lora.targets=['*conv1', '*time_emb_proj']", "model.attention=true"]
WEIGHTS = ["client.update=weights", "client.local_steps=2", "strategy.name=FedAdam"]
PRIVATE = ["client.update=weights", "strategy.name=DifferentialPrivacyClientSideFixedClipping"]
PRIVATE += ["strategy.args={noise_multiplier = 0.1, clipping_norm = 0.1}"]


@pytest.mark.parametrize("training", [[], WEIGHTS, PRIVATE], ids=["gradient", "weights", "private"])
@pytest.mark.parametrize(
    ("part", "sign"),
    [(TIME_AND_OUTPUT, ("time_embedding.", "conv_out.")), (ADAPTERS, (".lora_",))],
    ids=["some", "lora"],
)
def test_only_what_is_trained_travels_and_is_attacked(
    part: list[str], sign: tuple[str, ...], training: list[str], tmp_path: Path
) -> None:
    settings = tiny_settings(GUESSING, *part, *training)
    honest, travelled = build_client_app(settings), set()

    def client(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        for content in (message.content, reply.content):
            travelled.update(frozenset(record) for record in content.array_records.values())
        return reply

    directory = run_in_process(tmp_path / "run", settings, client)
    [names] = travelled
    assert names
    assert all(any(part in name for part in sign) for name in names)
    base, final = load_file(directory.base), load_checkpoint(directory.model).weights
    assert names < set(base)
    moved = {name for name, value in base.items() if not torch.equal(value, final[name])}
    assert moved <= names
    assert len(moved) > len(names) / 3  # the gradient of an adapter's first matrix is zero before the second one moves
    observation = Observation.load(directory.captures / "round-0002-client-0001.safetensors")
    assert 0 < len(observation.update) <= len(names)
    assert set(observation.update) <= names
    assert all(torch.equal(observation.weights[name], value) for name, value in base.items() if name not in names)
    assert set(read_leakage(directory.leakage_csv)["status"]) == {"ok"}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["client.trainable=['atention*']"],
            r"client\.trainable = \['atention\*'\]: 'atention\*' matches no parameter; some are conv_in",
        ),
        (
            ["client.lora.rank=2", "client.lora.targets=['*conv1', '*norm1']"],
            r"\.targets = .*'\*norm1' matches no layer",
        ),
        (["client.lora.rank=-1"], r"client\.lora\.rank = -1"),
        (["client.lora.ranks=1"], r"did you mean 'client\.lora\.rank'"),
    ],
)
def test_a_part_that_is_not_there_is_refused(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        prepare(tiny_settings(GUESSING, *overrides))
    assert "\n" not in str(caught.value)


def test_a_model_that_is_adapted_already_is_trained_on_but_not_adapted_again(tmp_path: Path) -> None:
    directory = run_in_process(tmp_path / "run", tiny_settings(GUESSING, *ADAPTERS, "federation.rounds=1"))
    adapted = f"model.checkpoint={directory.model}"
    assert prepare(tiny_settings(GUESSING, adapted)).recipe.partial
    with pytest.raises(ValueError, match=r"client\.lora\.rank = 2: the checkpoint has adapters"):
        prepare(tiny_settings(GUESSING, adapted, "client.lora.rank=2"))
