"""Settings that others make void, and arguments that belong to a name."""

import json
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from experiments.experiment import prepare
from experiments.settings import ExperimentSettings, load_run
from fl_sim.config import BROUGHT_BY_CHECKPOINT, SettingsError, resolve
from fl_sim.setting_layers import Void, has, look_up
from fl_sim.settings_file import dump_toml, load_settings

EXAMPLES: dict[str, Any] = {
    "data.path": "/photos",
    "data.photographs": ["chelsea"],
    "data.tiles_per_side": 2,
    "data.config": "plain",
    "data.split": "test",
    "data.image_column": "img",
    "data.label_column": "label",
    "data.strict": True,
    "data.dirichlet_alpha": 0.25,
    "model.prediction_type": "sample",
    "model.num_train_timesteps": 16,
    "model.classifier": "LeNet",
    "model.classifier_args": {"channels": [8]},
    "model.classes": 3,
    "model.config": "paper",
    "model.unet": {"act_fn": "gelu"},
    "model.factory": "mine:build",
    "model.factory_args": {"width": 8},
    "model.block_out_channels": [8, 8],
    "model.layers_per_block": 2,
    "model.norm_num_groups": 4,
    "model.attention": True,
    "federation.curious_peers": [1],
    "federation.degree": 2,
    "client.local_steps": 2,
    "client.epochs": 2,
    "client.optimizer": "adam",
    "client.momentum": 0.5,
    "client.betas": [0.8, 0.9],
    "client.eps": 1e-3,
    "client.weight_decay": 0.1,
    "client.ema_decay": 0.9,
    "client.lr": 0.5,
    "client.lr_schedule": "cosine",
    "client.max_grad_norm": 1.0,
    "client.min_snr_gamma": 5.0,
    "client.noise_offset": 0.1,
    "client.label_dropout": 0.1,
    "client.lora.alpha": 2,
    "client.lora.targets": ["*.to_q"],
    "strategy.args.lr": 0.5,
    "utility.samples": 3,
    "metrics.names": ["fsim"],
    "metrics.lpips_weights": ["/weights/alex.pth"],
    "metrics.chance_pairs": 9,
    "attack.when": "after",
    "attack.every": 2,
    "attack.clients": [1],
    "attack.capture": "attacked",
    "attack.max_disk": 5_000_000_000,
    "attack.knows_defence": False,
    "attack.workers": 3,
    "attack.queue_limit": 5,
    "attack.gpus_per_worker": 0.5,
    "attack.threads": 2,
    "attack.timeout": 5.0,
    "inversion.name": "max-margin",
    "inversion.every": 2,
    "inversion.evaluator_steps": 5,
    "inversion.args": {"mine:Inversion": {"depth": 5}},
    "data.public.name": "faces",
    "data.public.path": "/photos",
    "data.public.config": "small",
    "data.public.split": "test",
    "data.public.limit": 5,
    "data.public.photographs": ["rocket"],
    "data.public.tiles_per_side": 2,
    "data.public.image_column": "picture",
}
"""Of every setting that another one can make void a value that is not its default."""

MAKES_VOID: dict[str, list[Any]] = {
    "task": ["diffusion", "classification"],
    "model.checkpoint": ["bundled"],
    "model.config": ["small"],
    "model.factory": ["mine:build", None],
    "data.name": ["bundled", "digits", "folder", "some/dataset"],
    "data.public.name": ["faces", "some/photos"],
    "data.partition": ["iid", "photo"],
    "federation.topology": ["server", "ring"],
    "client.update": ["gradient", "weights"],
    "client.epochs": [3],
    "client.optimizer": ["adam", "adamw", "sgd"],
    "client.lora.rank": [0],
    "utility.every": [0],
    "metrics.names": ["fsim"],
    "attack.name": ["none"],
    "attack.when": ["never"],
    "inversion.name": ["none"],
    "defence.name": ["none"],
}
SUPPORT: dict[Any, dict[str, Any]] = {
    "small": {"model": {"checkpoint": "none"}},
    "mine:build": {"model": {"checkpoint": "none"}},
    None: {"model": {"checkpoint": "none"}},
    "folder": {"data": {"path": "/photos"}},
    "faces": {"task": "classification", "inversion": {"name": "max-margin"}},
    "some/photos": {"task": "classification", "inversion": {"name": "max-margin"}},
    "ring": {"strategy": {"name": "Gossip"}},
    3: {"client": {"update": "weights"}},
    "adam": {"client": {"update": "weights"}},
    "adamw": {"client": {"update": "weights"}},
    "sgd": {"client": {"update": "weights"}},
}
"""What a choice needs beside it."""


def tree(key: str, value: Any, base: dict[str, Any] | None = None) -> dict[str, Any]:
    result: dict[str, Any] = deepcopy(base or {})
    table = result
    *tables, leaf = key.split(".")
    for name in tables:
        table = table.setdefault(name, {})
    table[leaf] = value
    return result


def cases() -> list[Any]:
    return [
        pytest.param(rule, choice, key, id=f"{rule.selector}={choice}-{key}")
        for rule in ExperimentSettings.void
        for choice in MAKES_VOID[rule.selector]
        if rule.holds(choice)
        for key in rule.keys
    ]


@pytest.mark.parametrize(("rule", "choice", "key"), cases())
class TestVoid:
    def chosen(self, rule: Void, choice: Any) -> dict[str, Any]:
        chosen = tree(rule.selector, choice, SUPPORT.get(choice))
        for key, value in rule.only_with.items():
            chosen = tree(key, value, chosen)
        return chosen

    def test_an_override_that_another_setting_makes_void_is_refused(self, rule: Void, choice: Any, key: str) -> None:
        for value in (EXAMPLES[key], look_up(ExperimentSettings().model_dump(mode="json"), key)):
            if value is None:
                continue
            with pytest.raises(SettingsError, match=rf"^{key} = .*; allowed: unset") as caught:
                load_settings(ExperimentSettings, self.chosen(rule, choice), [f"{key}={json.dumps(value)}"])
            assert "\n" not in str(caught.value)

    def test_a_file_that_contradicts_itself_is_refused(self, rule: Void, choice: Any, key: str) -> None:
        with pytest.raises(SettingsError, match=rf"^{key} = "):
            load_settings(ExperimentSettings, tree(key, EXAMPLES[key], self.chosen(rule, choice)))

    def test_a_file_may_repeat_a_default(self, rule: Void, choice: Any, key: str) -> None:
        default = look_up(ExperimentSettings().model_dump(mode="json"), key)
        if default is not None:
            load_settings(ExperimentSettings, tree(key, default, self.chosen(rule, choice)))

    def test_what_is_void_is_left_out_of_config_toml(self, rule: Void, choice: Any, key: str, tmp_path: Path) -> None:
        settings = resolve(load_settings(ExperimentSettings, self.chosen(rule, choice)))
        (tmp_path / "config.toml").write_text(dump_toml(settings))
        assert not has(tomllib.loads(dump_toml(settings)), key)
        assert load_settings(ExperimentSettings, tmp_path / "config.toml") == settings


def test_every_setting_that_can_be_void_has_an_example() -> None:
    assert {key for rule in ExperimentSettings.void for key in rule.keys} == set(EXAMPLES)


def test_what_only_an_override_makes_void_is_dropped() -> None:
    file = {"client": {"update": "weights", "lr": 0.5, "local_steps": 4}, "strategy": {"name": "FedAvg"}}
    settings = load_settings(ExperimentSettings, file, ["client.update=gradient"])
    assert (settings.client.lr, settings.client.local_steps) == (0.01, 1)


@pytest.mark.parametrize(("kind", "first", "second"), [("strategy", "FedSGD", "FedAvg"), ("defence", "signs", "top-k")])
def test_arguments_do_not_outlive_their_name(kind: str, first: str, second: str) -> None:
    file = {kind: {"name": first, "args": {"lr": 0.5}}}

    def arguments(*overrides: str) -> dict[str, Any]:
        return getattr(load_settings(ExperimentSettings, file, overrides), kind).args

    assert arguments() == {"lr": 0.5}
    assert arguments(f"{kind}.name={first}") == {"lr": 0.5}
    assert arguments(f"{kind}.name={second}") == {}
    assert arguments(f"{kind}.args.beta=1", f"{kind}.name={second}") == {"beta": 1}
    assert arguments(f"{kind}.args.beta=1") == {"lr": 0.5, "beta": 1}


def test_a_factorys_arguments_do_not_outlive_it() -> None:
    file = {"model": {"checkpoint": "none", "factory": "mine:build", "factory_args": {"width": 8}}}
    assert load_settings(ExperimentSettings, file).model.factory_args == {"width": 8}
    assert load_settings(ExperimentSettings, file, ["model.factory=yours:build"]).model.factory_args == {}
    assert load_settings(ExperimentSettings, file, ["model.checkpoint=bundled"]).model.factory is None


def test_an_attacks_arguments_go_when_another_attack_is_chosen_and_stay_when_one_is_added() -> None:
    def arguments(*overrides: str) -> dict[str, Any]:
        return load_run("demo-16", overrides).attack.args

    assert arguments("attack.name=dlg") == {}
    assert arguments("attack.name=none") == {}
    assert arguments("attack.name=['dlg', 'residual']") == {"residual": {"precision": 1e-3}}
    assert arguments("attack.name=dlg", "attack.args.dlg.history=7") == {"dlg": {"history": 7}}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["attack.args.gidm.recipe=published"], "attack.args.gidm: attack.name = 'residual' does not name it"),
        (["attack.name=none", "attack.args.residual.history=5"], "attack.args.residual: attack.name = 'none'"),
        (["attack.args.residul.history=5"], "did you mean 'residual'"),
    ],
)
def test_arguments_of_an_attack_that_is_not_chosen_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        prepare(load_run("demo-16", overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_may_hold_arguments_of_attacks_that_it_does_not_name() -> None:
    file = {"attack": {"name": "none", "args": {"residual": {"history": 5}, "residul": {"history": 5}}}}
    settings = load_settings(ExperimentSettings, file)
    assert settings.attack.args == {"residul": {"history": 5}}  # which is refused as unknown
    chosen = load_settings(ExperimentSettings, file, ["attack.name=residual"])
    assert chosen.attack.args["residual"] == {"history": 5}


def test_beside_a_checkpoint_a_file_may_repeat_the_networks_defaults() -> None:
    file = {"model": {"checkpoint": "mine.safetensors", "layers_per_block": 1, "norm_num_groups": 4}}
    assert load_settings(ExperimentSettings, file).model.model_fields_set == {"checkpoint", "norm_num_groups"}
    given = load_settings(ExperimentSettings, file, ["model.layers_per_block=1"])
    assert given.model.model_fields_set == {"checkpoint", "norm_num_groups", "layers_per_block"}


def test_beside_a_checkpoint_config_toml_has_what_was_given_of_the_network_alone() -> None:
    written = dump_toml(load_run("demo-16"))
    assert not any(f"{key.rpartition('.')[2]} =" in written for key in BROUGHT_BY_CHECKPOINT)
    assert "layers_per_block = 1" in dump_toml(load_run("demo-16", ["model.layers_per_block=1"]))
    assert "layers_per_block = 1" in dump_toml(load_run("demo-16", ["model.checkpoint=none"]))


def test_a_presets_network_does_not_outlive_the_choice_of_a_checkpoint() -> None:
    assert load_run("paper/cifar100-known-gidm", ["model.checkpoint=bundled"]).model.model_fields_set == {"checkpoint"}
    kept = load_run("paper/cifar100-known-gidm", ["model.checkpoint=bundled", "model.attention=true"]).model
    assert kept.model_fields_set == {"checkpoint", "attention"}
