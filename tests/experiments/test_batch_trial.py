"""One client's first batch, trained before the run."""

from typing import Any

import pytest
import torch

from attacks.attack import AttackError
from experiments.batch_trial import try_first_batch
from experiments.experiment import prepare
from fl_sim import client_app
from fl_sim.config import SettingsError
from tests.experiments.made_up_run import tiny_settings

WEIGHTS = ("client.update=weights", "strategy.name=FedAvg")


def tried(*overrides: str) -> Any:
    return try_first_batch(prepare(tiny_settings(*overrides)))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (*WEIGHTS, "client.local_steps=3"),
        (*WEIGHTS, "client.optimizer=adam", "client.local_steps=2"),
        (*WEIGHTS, "client.epochs=1", "client.batch_size=2"),
        ("threat=known", "attack.name=gidm"),
        ("defence.name=secure-aggregation",),
        ("defence.name=dp-sgd",),
        ("client.trainable=['*conv*']",),
        (*WEIGHTS, "client.lora.rank=1"),
        ("federation.topology=ring", "federation.clients=3", "federation.clients_per_round=3", "strategy.name=Gossip"),
        ("attack.name=none",),
        ("model.unet.num_class_embeds=4", "threat=known", *WEIGHTS, "client.local_steps=3", "client.batch_size=2"),
    ],
)
def test_what_will_run_is_tried_without_complaint(overrides: tuple[str, ...]) -> None:
    found = tried(*overrides)
    assert found.loss > 0
    assert found.size > 1000


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (("attack.name=gidm",), "'gidm' needs noise and timesteps"),
        ((*WEIGHTS, "client.optimizer=adam", "client.local_steps=3"), "'residual' needs a gradient"),
        (("attack.name=['residual', 'dlg']",), "'dlg' needs noise and timesteps"),
        (("attack.name=dlg", "threat=known", "defence.name=signs"), "'dlg' needs the magnitudes"),
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

    monkeypatch.setattr(client_app, "local_training", fails)
    with pytest.raises(SettingsError, match="client 0 cannot train its first batch: OutOfMemoryError: CUDA") as caught:
        tried()
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_found_before_the_run() -> None:
    experiment = prepare(tiny_settings())
    experiment.weights["conv_in.weight"][0] = float("nan")
    with pytest.raises(SettingsError, match=r"could not read an update: .*NaN"):
        try_first_batch(experiment)
