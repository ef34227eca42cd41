import json
from pathlib import Path

import pytest
import torch
from flwr.serverapp.strategy import FedAvg, FedMedian

from attacks.residual import Residual
from experiments.checkpoint import load_checkpoint, save_checkpoint
from experiments.experiment import Experiment, build_recipe, prepare
from experiments.settings import ExperimentSettings
from fl_sim.checkpoint import Checkpoint
from fl_sim.config import BROUGHT_BY_CHECKPOINT, SettingsError, resolve
from fl_sim.defences.registry import create
from fl_sim.diffusion import DiffusionTask, scheduler_config
from fl_sim.network import build_model, unet_config
from fl_sim.settings_file import dump_toml, load_settings
from strategies.fed_sgd import FedSGD
from tests.experiments.made_up_run import tiny_settings

TOY = "attack.name=tests.attacks.toy_attacks:Guess"


class Namesake(Residual):
    """Inherits its name."""


def prepared(*overrides: str) -> Experiment:
    return prepare(tiny_settings(TOY, *overrides))


def first_weight(experiment: Experiment) -> torch.Tensor:
    return experiment.weights["conv_in.weight"]


def test_initial_weights_follow_the_public_seed_alone() -> None:
    weights = [
        first_weight(prepared(f"seed={public}", f"client.seed={private}"))
        for public, private in ((1, 3), (1, 4), (2, 3))
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_drawing_weights_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    prepared()
    assert torch.equal(torch.rand(1), expected)


def test_clients_that_send_gradients_get_fed_sgd_around_any_strategy() -> None:
    strategy = prepared("strategy.name=FedMedian", "strategy.args.lr=0.5").strategy
    assert isinstance(strategy, FedSGD)
    assert isinstance(strategy.strategy, FedMedian)
    assert isinstance(prepared("client.update=weights", "strategy.name=FedAvg").strategy, FedAvg)


def test_as_many_clients_train_as_the_settings_say() -> None:
    strategy = prepared("federation.clients=7", "federation.clients_per_round=2").strategy
    assert isinstance(strategy, FedSGD)
    inner = strategy.strategy
    assert isinstance(inner, FedAvg)
    assert (inner.min_available_nodes, inner.fraction_evaluate) == (7, 0.0)
    assert max(int(7 * inner.fraction_train), inner.min_train_nodes) == 2


def test_a_defence_that_cannot_be_is_refused_before_anything_is_written() -> None:
    assert prepared().defence.name == "none"
    assert prepared("defence.name=top-k", "defence.args.fraction=0.5").defence == create("top-k", {"fraction": 0.5})
    with pytest.raises(SettingsError, match=r"defence.name = 'noise': unknown; available: .*none"):
        prepared("defence.name=noise")
    with pytest.raises(SettingsError, match=r"defence.args.fraction = 2: "):
        prepared("defence.name=top-k", "defence.args.fraction=2")
    with pytest.raises(SettingsError, match=r"defence.args.keep = 'own'"):
        prepared("defence.name=unshared-time-mlp", "defence.args.keep=own")
    with pytest.raises(SettingsError, match=r"defence.name = 'unshared-time-mlp': clients train none of these layers"):
        prepared("defence.name=unshared-time-mlp", "client.trainable=['conv_out.*']")


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            [
                "client.update=weights",
                "strategy.name=DifferentialPrivacyServerSideFixedClipping",
                "strategy.args={inner = 'FedSGD', noise_multiplier = 1.0, clipping_norm = 1.0}",
            ],
            r"strategy\.args\.inner = 'FedSGD': takes gradients",
        ),
        (
            ["strategy.name=FedYogi"],
            r"strategy\.name = 'FedYogi': does not combine gradients .*or client\.update = 'weights'",
        ),
        (["strategy.name=Bulyan", "federation.clients=4", "strategy.args.num_malicious_nodes=1"], "at least 7"),
        (["strategy.name=FedXgbCyclic"], "unknown"),
        (["strategy.name=FedMedian", "defence.name=secure-aggregation"], "FedMedian needs every client's update"),
    ],
)
def test_strategies_that_do_not_go_with_what_clients_send_are_refused(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        prepared(*overrides)
    assert "\n" not in str(caught.value)


def test_arguments_that_follow_from_other_settings_need_not_be_given() -> None:
    weights = ("client.update=weights", "client.lr=0.02", "federation.clients_per_round=2")
    private = prepared(
        *weights,
        "strategy.name=DifferentialPrivacyServerSideFixedClipping",
        "strategy.args={noise_multiplier = 1.0, clipping_norm = 1.0}",
    ).strategy
    assert private.num_sampled_clients == 2
    assert prepared(*weights, "strategy.name=QFedAvg").strategy.client_learning_rate == 0.02


def test_the_recipe_carries_a_noise_seed_in_the_known_threat_model_only() -> None:
    assert build_recipe(tiny_settings("threat=known", "seed=9")).noise_seed == 9
    assert build_recipe(tiny_settings("threat=private", "seed=9")).noise_seed is None


def test_the_recipe_never_holds_the_private_seed() -> None:
    private = 123456789
    for threat in ("known", "private"):
        recipe = build_recipe(tiny_settings(f"client.seed={private}", f"threat={threat}"))
        assert str(private) not in recipe.model_dump_json()


@pytest.fixture
def trained(tmp_path: Path) -> str:
    """The path of a checkpoint: v-prediction, T = 50, channels 8 and 16, no attention."""
    model = unet_config(16, block_out_channels=(8, 16), norm_num_groups=4)
    weights = build_model(model).state_dict()
    path = tmp_path / "trained.safetensors"
    save_checkpoint(path, Checkpoint(weights, model, DiffusionTask.on(scheduler_config(50, "v_prediction")), {}))
    return str(path)


def beside(checkpoint: str, *overrides: str) -> Experiment:
    base = {"client": {"seed": 1}, "federation": {"clients": 2}, "model": {"checkpoint": checkpoint}}
    return prepare(resolve(load_settings(ExperimentSettings, base, [TOY, *overrides])))


def test_a_checkpoint_brings_its_own_network_and_noise_schedule(trained: str) -> None:
    experiment = beside(trained)
    kept = load_checkpoint(Path(trained))
    assert experiment.recipe.model == kept.model
    assert experiment.recipe.task == kept.task
    assert torch.equal(first_weight(experiment), kept.weights["conv_in.weight"])
    written = dump_toml(experiment.settings)
    assert not any(f"{key.partition('.')[2]} = " in written for key in BROUGHT_BY_CHECKPOINT)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.prediction_type=epsilon", r"model.prediction_type = 'epsilon': the checkpoint has 'v_prediction'"),
        ("model.num_train_timesteps=1000", r"model.num_train_timesteps = 1000: the checkpoint has 50"),
        ("model.block_out_channels=[32,64]", r"model.block_out_channels = \[32, 64\]: the checkpoint has \[8, 16\]"),
        ("model.layers_per_block=2", r"model.layers_per_block = 2: the checkpoint has 1"),
        ("model.norm_num_groups=8", r"model.norm_num_groups = 8: the checkpoint has 4"),
        ("model.attention=true", r"model.attention = True: the checkpoint has False"),
        ("data.image_size=32", r"data.image_size = 32: the checkpoint has 16"),
    ],
)
def test_settings_that_say_something_else_than_the_checkpoint_are_refused(
    trained: str, override: str, complaint: str
) -> None:
    with pytest.raises(SettingsError, match=complaint):
        beside(trained, override)


def test_settings_that_say_what_the_checkpoint_is_are_recorded(trained: str) -> None:
    agreeing = ("model.prediction_type=v_prediction", "model.block_out_channels=[8,16]", "model.attention=false")
    written = dump_toml(beside(trained, *agreeing).settings)
    assert 'prediction_type = "v_prediction"' in written
    assert "attention = false" in written
    assert "layers_per_block" not in written


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("attack.name=residul", "did you mean 'residual'"),
        ("attack.args.residul.starts=2", r"attack\.args\.residul: unknown attack"),
        ("attack.args={'tests.attacks.toy_attacks:Guess' = {depth = 3}}", "depth"),
        ("strategy.name=FedAvgg", "did you mean 'FedAvg'"),
        ("strategy.args.optimiser=adam", r"strategy\.args\.optimiser = 'adam'"),
        ("client.update=weights", r"strategy\.name = 'FedSGD': takes gradients, but client\.update = 'weights'"),
        ("attack.name=['none', 'residual']", r"attack\.name = \['none', 'residual'\]: 'none' stands alone"),
        (
            "attack.name=['residual', 'tests.experiments.test_experiment:Namesake']",
            "'residual' and 'tests.*Namesake' are both called 'residual'",
        ),
        ("client.trainable=['conv_out.*', 'nosuch.*']", r"client\.trainable = .*'nosuch\.\*' matches no parameter"),
        ("client.lora={rank = 1, targets = ['*conv*', 'nosuch']}", r"client\.lora\.targets = .*'nosuch' matches no"),
        ("attack.name=tests.experiments.exits:Attack", r"attack\.name = .*: cannot be imported: SystemExit: 0$"),
        (
            "attack={name = 'residual', args = {residual = {history = true}}}",
            r"attack\.args\.residual\.history = true: nei",
        ),
        (
            "defence={name = 'top-k', args = {fraction = true}}",
            r"defence\.args\.fraction = true: neither true nor false",
        ),
        ("defence.name=prayer", r"defence\.name = 'prayer'"),
        ("data.photographs=['astronaut', 'mona lisa']", "mona lisa"),
        ("model.checkpoint=nowhere.safetensors", r"model\.checkpoint = 'nowhere\.safetensors'"),
        ("model.norm_num_groups=5", "cannot be built"),
    ],
)
def test_wrong_settings_are_named_before_anything_starts(override: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        prepared(override)
    assert "\n" not in str(refusal.value)


def network(*overrides: str) -> dict[str, object]:
    return prepared("model.checkpoint=none", *overrides).recipe.model


def test_single_keys_of_the_network_can_be_set() -> None:
    assert network("model.unet={act_fn = 'gelu', block_out_channels = [8, 8, 8], norm_num_groups = 4}") == unet_config(
        16, block_out_channels=[8, 8, 8], norm_num_groups=4
    ) | {"act_fn": "gelu"}


def test_a_network_is_taken_by_name_or_from_a_file_of_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").touch()  # does not stand in the name's way
    assert network("model.config=small") == unet_config(16)
    assert (
        resolve(load_settings(ExperimentSettings, {}, ["model={checkpoint='none', config='small'}"])).model.config
        == "small"
    )
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(unet_config(64, block_out_channels=(8, 8), norm_num_groups=4) | {"_diffusers_version": "0"})
    )
    expected = unet_config(16, block_out_channels=(8, 8), norm_num_groups=4)
    assert network(f"model.config={file}") == expected
    assert network(f"model.config={file}", "model.unet.act_fn=gelu") == expected | {"act_fn": "gelu"}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["model.config=smal"], r"model\.config = 'smal': unknown; allowed: small, .*did you mean 'small'"),
        (["model.config=gone.json"], r"model\.config = 'gone\.json': gone\.json cannot be read: No such file"),
        (["model.config=small", "model.attention=true"], r"model\.attention = True: with model\.config = 'small'"),
        (
            ["model.unet.norm_num_groups=4", "model.norm_num_groups=4"],
            r"model\.norm_num_groups = 4: model\.unet\.norm_num_groups is given too",
        ),
        (["model.unet.no_such=1"], r"model\.unet = \{'no_such': 1\}.*unknown keys: no_such"),
        (["model.unet.act_fn=no"], r"model\.unet = .*cannot be built"),
        (["model.unet.out_channels=6"], "predicts a variance"),
        (["model.unet.class_embed_type=timestep"], "embeds class labels by class_embed_type"),
    ],
)
def test_a_network_that_cannot_be_is_one_line(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        prepared("model.checkpoint=none", *overrides)
    assert "\n" not in str(refusal.value)


def test_beside_a_checkpoint_no_network_is_described(trained: str) -> None:
    for given in ("model.config=small", "model.unet.act_fn=gelu"):
        with pytest.raises(SettingsError, match="the checkpoint brings its own network"):
            beside(trained, given)


def test_the_description_names_model_clients_defence_and_attacks() -> None:
    text = "\n".join(prepared("defence.name=signs", "attack.knows_defence=false", "threat=known").describe())
    for words in ("an untrained network", "parameters", "2 of 2 clients send the gradient", "FedSGD"):
        assert words in text
    for words in ("defence: signs, unknown to the attacker", "tests.attacks.toy_attacks:Guess; threat: known"):
        assert words in text


def test_a_checkpoint_in_another_type_is_said_to_be_trained_in_float32(tmp_path: Path) -> None:
    fresh = prepare(tiny_settings())
    half = {name: value.half() for name, value in fresh.weights.items()}
    save_checkpoint(tmp_path / "half.safetensors", Checkpoint(half, fresh.recipe.model, fresh.recipe.task, {}))
    settings = load_settings(
        ExperimentSettings, {"client": {"seed": 1}}, [f"model.checkpoint={tmp_path / 'half.safetensors'}"]
    )
    experiment = prepare(settings)
    assert "stored in float16, trained in float32" in experiment.describe()[0]
    assert {value.dtype for value in experiment.weights.values()} == {torch.float32}


def test_clients_train_by_the_recipe_that_the_settings_describe() -> None:
    recipe = prepared(
        "client.update=weights",
        "strategy.name=FedAvg",
        "client.optimizer=adamw",
        "client.betas=[0.95, 0.999]",
        "client.eps=1e-6",
        "client.weight_decay=0.01",
        "client.batch_size=2",
        "client.gradient_accumulation=3",
        "client.horizontal_flip=true",
        "client.min_snr_gamma=5",
        "client.noise_offset=0.1",
        "client.ema_decay=0.99",
        "client.dtype=bfloat16",
        "attack.name=none",
    ).recipe
    optimizer = recipe.optimizer
    assert optimizer is not None
    assert (optimizer.name, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (
        "adamw",
        (0.95, 0.999),
        1e-6,
        0.01,
    )
    assert (recipe.batch_size, recipe.gradient_accumulation) == (6, 3)
    assert (recipe.horizontal_flip, recipe.task.min_snr_gamma, recipe.task.noise_offset) == (True, 5.0, 0.1)
    assert (recipe.ema_decay, recipe.dtype) == (0.99, "bfloat16")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("client.dtype=float8", r"client\.dtype = 'float8'.*'float32', 'float16' or 'bfloat16'"),
        ("client.min_snr_gamma=0", r"client\.min_snr_gamma = 0.*greater than 0"),
        ("client.noise_offset=-1", r"client\.noise_offset = -1.*greater than or equal to 0"),
        ("client.ema_decay=0.9", r"client\.ema_decay = 0\.9: with client\.update = 'gradient' there is no local step"),
        ("client.gradient_accumulation=0", r"client\.gradient_accumulation = 0.*greater than or equal to 1"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_line(override: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as refusal:
        prepared(override)
    assert "\n" not in str(refusal.value)


def test_accumulated_gradients_do_not_go_with_dp_sgd() -> None:
    with pytest.raises(SettingsError, match=r"client\.gradient_accumulation = 2: dp-sgd"):
        prepared("defence.name=dp-sgd", "client.gradient_accumulation=2")
