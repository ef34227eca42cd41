"""What is found out on one batch before a run starts."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from attacks.attack import AttackError
from experiments.checkpoint import Checkpoint, save_checkpoint
from experiments.cli import app
from experiments.dry_run import describe, try_first_batch
from experiments.experiment import prepare
from experiments.settings import ExperimentSettings
from fl_sim import client_app
from fl_sim.config import SettingsError, load_settings
from tests.experiments.made_up_run import tiny_settings

GUESS = "attack.name=tests.attacks.toy_attacks:Guess"
TINY = ("model.checkpoint=none", "model.block_out_channels=[8,8]", "model.norm_num_groups=4", "client.seed=3")
WEIGHTS = ("client.update=weights", "strategy.name=FedAvg")


def tried(*overrides: str) -> Any:
    return try_first_batch(prepare(tiny_settings(*overrides)))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (*WEIGHTS, "client.local_steps=3"),
        (*WEIGHTS, "client.epochs=1", "client.batch_size=2"),
        ("threat=known", "attack.name=gidm"),
        ("defence.name=secure-aggregation",),
        ("defence.name=dp-sgd",),
        ("client.trainable=['*conv*']",),
        (*WEIGHTS, "client.lora.rank=1"),
        ("federation.topology=ring", "federation.clients=3", "federation.clients_per_round=3", "strategy.name=Gossip"),
        ("attack.name=none",),
    ],
)
def test_what_will_run_is_tried_without_complaint(overrides: tuple[str, ...]) -> None:
    found = tried(*overrides)
    assert found.loss > 0
    assert found.size > 1000


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (("attack.name=gidm",), "'gidm' needs NOISE_AND_TIMESTEPS"),
        ((*WEIGHTS, "client.optimizer=adam", "client.local_steps=2"), "'residual' needs LOCAL_STEPS"),
        (("attack.name=['residual', 'dlg']",), "'dlg' needs NOISE_AND_TIMESTEPS"),
        (("attack.name=dlg", "threat=known", "defence.name=signs"), "'dlg' needs MAGNITUDES"),
        (
            ("attack.name=gidm-plus", "attack.args.gidm-plus.prior=~/gone.safetensors"),
            "'~/gone.safetensors' is no usable",
        ),
    ],
)
def test_an_attack_that_could_not_work_is_refused_before_the_run(overrides: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(AttackError, match=complaint):
        tried(*overrides)


def test_the_defence_counts_only_as_far_as_the_attacker_knows_it() -> None:
    assert tried("attack.name=dlg", "threat=known", "defence.name=signs", "attack.knows_defence=false").loss > 0


def test_a_client_that_cannot_train_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr(client_app.diffusion, "build_scheduler", fails)
    with pytest.raises(SettingsError, match="client 0 cannot train its first batch: OutOfMemoryError: CUDA") as caught:
        tried()
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_found_before_the_run() -> None:
    experiment = prepare(tiny_settings())
    experiment.weights["conv_in.weight"][0] = float("nan")
    with pytest.raises(SettingsError, match=r"could not read an update: .*NaN"):
        try_first_batch(experiment)


def test_the_description_names_model_clients_defence_and_attacks() -> None:
    text = "\n".join(
        describe(prepare(tiny_settings("defence.name=signs", "attack.knows_defence=false", "threat=known", GUESS)))
    )
    for words in ("an untrained network", "parameters", "2 of 2 clients send the gradient", "FedSGD"):
        assert words in text
    for words in ("defence: signs, unknown to the attacker", "tests.attacks.toy_attacks:Guess; threat: known"):
        assert words in text


def test_a_checkpoint_in_another_type_is_said_to_be_trained_in_float32(tmp_path: Path) -> None:
    fresh = prepare(tiny_settings())
    half = {name: value.half() for name, value in fresh.weights.items()}
    save_checkpoint(tmp_path / "half.safetensors", Checkpoint(half, fresh.recipe.model, fresh.recipe.scheduler, {}))
    settings = load_settings(
        ExperimentSettings, {"client": {"seed": 1}}, [f"model.checkpoint={tmp_path / 'half.safetensors'}"]
    )
    experiment = prepare(settings)
    assert "stored in float16, trained in float32" in describe(experiment)[0]
    assert {value.dtype for value in experiment.weights.values()} == {torch.float32}


def test_a_dry_run_prints_a_file_that_runs_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for override in (GUESS, *TINY) for word in ("--set", override)]
    done = CliRunner().invoke(app, ["run", "demo", *words, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []
    assert "# one batch: training loss" in done.stdout
    printed = load_settings(ExperimentSettings, tomllib.loads(done.stdout))
    assert (printed.client.seed, printed.model.block_out_channels) == (3, (8, 8))


def test_a_dry_run_refuses_a_folder_that_the_run_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    done = CliRunner().invoke(app, ["run", "demo", "--dry-run", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "not empty" in done.stderr
