"""A federation of a classifier, from its settings to the tables; the attack on it is a guess."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from attacks.attack import AttackError
from attacks.observation import Observation, ThreatModel
from attacks.reconstruction_file import load_reconstruction
from experiments.batch_trial import try_first_batch
from experiments.checkpoint import load_checkpoint
from experiments.experiment import build_recipe, prepare
from experiments.report import build_report
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from experiments.strip import build_strip
from fl_sim.classification import ClassificationTask
from fl_sim.client_app import local_training, private_draw
from fl_sim.config import SettingsError
from fl_sim.network import build_model
from fl_sim.settings_file import dump_toml, load_settings
from tests.experiments.in_process import Recorded, Tape, record, run_in_process
from tests.experiments.report_page import Page
from tests.own_networks import HERE, trusting

GUESS = "tests.attacks.toy_attacks:Guess"
FACTORY = f"{HERE}:classifier_with_batch_norm"
BASE: dict[str, Any] = {
    "task": "classification",
    "data": {"name": "digits", "channels": 1, "limit": 60},
    "model": {"classifier": "ConvNet", "classifier_args": {"channels": [4, 4]}},
    "federation": {"clients": 2, "rounds": 2},
    "client": {"seed": 11, "batch_size": 2},
    "attack": {"name": GUESS, "workers": 1},
}


def settings(*overrides: str) -> ExperimentSettings:
    return load_settings(ExperimentSettings, BASE, overrides)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("recorded") / "run", settings())


def captures(directory: RunDirectory) -> list[Path]:
    return sorted(directory.captures.glob("*.safetensors"))


def test_the_tables_say_how_good_the_classifier_is_and_which_labels_were_trained_on(recorded: Recorded) -> None:
    rounds = pd.read_parquet(recorded.directory.rounds)
    assert rounds["heldout_accuracy"].between(0, 1).all()
    assert (rounds["heldout_loss"] > 0).all()
    leakage = pd.read_parquet(recorded.directory.leakage_parquet)
    assert leakage["timestep"].isna().all()
    truth = private_draw(settings(), build_recipe(settings()), 1, 2)
    assert truth.labels is not None
    assert leakage.query("round == 2 and client == 1")["label"].tolist() == truth.labels.tolist()
    assert leakage["label_recovered"].isna().all(), "a guess recovers nothing"


def test_the_report_is_about_a_classifier(recorded: Recorded) -> None:
    page = Page(build_report(recorded.directory.path))
    for words in ("trained a classifier", "Held-out accuracy by round", "labels recovered exactly", "12 images"):
        assert words in page.text
    assert "timestep" not in page.text
    assert "timestep" not in {heading["name"] for heading in page.blocks["gallery"]["headings"]}


def test_the_strip_shows_no_noise(recorded: Recorded, tmp_path: Path) -> None:
    assert build_strip(recorded.directory.path, tmp_path / "strip.png").stat().st_size > 0


def test_a_private_capture_holds_no_label_and_a_reply_neither(recorded: Recorded) -> None:
    assert len(captures(recorded.directory)) == 4
    for file in captures(recorded.directory):
        assert {name.partition("/")[0] for name in load_file(file)} == {"weights", "update"}
        assert Observation.load(file).threat is ThreatModel.PRIVATE
    for reply in recorded.tape.replies.values():
        assert set(reply["client"]) == {"partition", "device"}


def test_another_private_seed_with_the_same_replies_changes_nothing_that_an_attack_finds(
    recorded: Recorded, tmp_path: Path
) -> None:
    other = settings("client.seed=12")
    replayed = run_in_process(tmp_path / "run", other, Tape(other, recorded.tape))
    for one, again in zip(captures(recorded.directory), captures(replayed), strict=True):
        assert one.read_bytes() == again.read_bytes()
    for server_round, client in recorded.tape.replies:
        one, again = (
            load_reconstruction(run.reconstruction(server_round, client, "guess"))
            for run in (recorded.directory, replayed)
        )
        assert torch.equal(one.images, again.images)
    labels = [pd.read_parquet(run.leakage_parquet)["label"].tolist() for run in (recorded.directory, replayed)]
    assert labels[0] != labels[1], "the other seed draws something else"


def test_in_the_known_threat_model_clients_reveal_their_labels(tmp_path: Path) -> None:
    known = settings("threat=known", "federation.rounds=1")
    directory = run_in_process(tmp_path / "run", known)
    for client, file in enumerate(captures(directory)):
        seen, truth = Observation.load(file), private_draw(known, build_recipe(known), client, 1)
        assert seen.threat is ThreatModel.KNOWN
        assert seen.labels is not None
        assert truth.labels is not None
        assert torch.equal(seen.labels, truth.labels)


def test_the_final_model_is_a_checkpoint_for_another_run(recorded: Recorded, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(recorded.directory.model)
    assert checkpoint.task == ClassificationTask(num_classes=10)
    started = prepare(
        settings("client.update=weights", "strategy.name=FedAvg", f"model.checkpoint={recorded.directory.model}")
    )
    assert all(torch.equal(started.weights[name], value) for name, value in checkpoint.weights.items())
    with pytest.raises(SettingsError, match="it was trained for task = 'classification'; allowed: that task, or"):
        prepare(settings("task=diffusion", f"model.checkpoint={recorded.directory.model}"))
    with pytest.raises(SettingsError, match=r"model\.classes = 7: the checkpoint has 10; allowed: that"):
        prepare(settings(f"model.checkpoint={recorded.directory.model}", "model.classes=7"))
    with pytest.raises(SettingsError, match=r"data\.image_size = 20: the checkpoint has 16; allowed"):
        prepare(settings(f"model.checkpoint={recorded.directory.model}", "data.image_size=20"))


def test_settings_are_written_and_read_back(recorded: Recorded) -> None:
    text = recorded.directory.config.read_text(encoding="utf-8")
    assert 'checkpoint = "none"' in text
    assert "held_out = 0.2" in text
    assert "prediction_type" not in text
    assert dump_toml(recorded.directory.settings()) == text


@pytest.mark.parametrize("attack", ["residual", "gidm-plus"])
def test_attacks_on_diffusion_say_that_they_need_it(attack: str) -> None:
    experiment = prepare(settings(f"attack.name={attack}"))
    needs = f"attack '{attack}' needs clients that train a diffusion model .*here they train a classifier"
    with pytest.raises(AttackError, match=needs):
        try_first_batch(experiment)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=clasification"], r"task = 'clasification': .*'diffusion' or 'classification'; did you mean"),
        (["model.classifier=LeNt"], r"model\.classifier = 'LeNt': .*did you mean 'LeNet'"),
        (["model.classes=1"], r"model\.classes = 1: "),
        (["model.classes=7"], r"model\.classes = 7: the images have 10 classes; allowed: at least 10"),
        (["model.classifier_args.depth=3"], r"model\.classifier = 'ConvNet', .*: model\.depth = 3: unexpected keyword"),
        (["model.classifier_args.num_classes=3"], r"classifier_args\.num_classes = 3: follows from other settings"),
        (["model.attention=true"], r"model\.attention = True: with task = 'classification' nothing is denoised"),
        (["client.noise_offset=0.1"], r"client\.noise_offset = 0\.1: with task = 'classification'"),
        (["utility.samples=3"], r"utility\.samples = 3: with task = 'classification' nothing is sampled"),
        (["model.checkpoint=bundled"], r"'bundled': it was trained for task = 'diffusion'; allowed: that task, or"),
        (["data.limit=1", "federation.clients=1"], "all images are of one class, .*; allowed: two classes"),
        (["data.limit=5"], "class '5' has no image among the first 5"),
        (["data.held_out=0.99"], r"federation\.clients = 2: .*held out \(data\.held_out\)"),
        (["data.held_out=1"], r"data\.held_out = 1: "),
        (["defence.name=unshared-time-mlp"], "clients train none of these layers"),
    ],
)
def test_what_cannot_be_classified_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        prepare(settings(*overrides))
    assert "\n" not in str(caught.value)


def test_a_class_whose_only_image_is_broken_is_one_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (16, 16)).save(tmp_path / name / "0.png")
    (tmp_path / "b" / "0.png").write_bytes(b"nothing")
    folder = ["data.name=folder", f"data.path={tmp_path}", "data.partition=iid", "data.held_out=0"]
    with pytest.raises(SettingsError, match="class 'b' has no image that can be read"):
        prepare(settings(*folder, "federation.clients=1", "federation.clients_per_round=1"))


def test_a_classifier_has_no_place_in_diffusion() -> None:
    with pytest.raises(SettingsError, match=r"model\.classifier = 'LeNet': with task = 'diffusion' nothing is classif"):
        load_settings(ExperimentSettings, {}, ["model.classifier=LeNet"])


def test_another_task_takes_the_network_of_the_file_away() -> None:
    file = {"model": {"checkpoint": "bundled", "attention": False}, "attack": {"name": "none"}}
    changed = load_settings(ExperimentSettings, file, ["task=classification"])
    assert changed.model.checkpoint == "none"
    assert changed.data.held_out == 0.2


def test_the_run_says_what_it_is_going_to_do() -> None:
    model, _, held, *_ = prepare(settings()).describe()
    assert "10 classes" in model
    assert held == "clients hold 24, 24 images; 12 are held out"


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.classifier=LeNet", "model.classifier_args={}", "defence.name=dp-sgd"),
        ("model.classifier=ResNet", "model.classifier_args={channels=[8, 8]}", "client.lora.rank=2", "threat=known"),
        ("client.update=weights", "client.local_steps=2", "client.trainable=['*.weight']", "strategy.name=FedProx"),
        ("defence.name=secure-aggregation", "client.dtype=bfloat16", "client.gradient_accumulation=2"),
        ("federation.topology=ring", "federation.clients=3", "strategy.name=Gossip", "client.horizontal_flip=true"),
    ],
)
def test_what_serves_diffusion_serves_classification(overrides: tuple[str, ...]) -> None:
    assert try_first_batch(prepare(settings(*overrides))).loss > 0


def test_a_client_sends_the_gradient_of_the_cross_entropy() -> None:
    experiment = prepare(settings())
    draw = private_draw(experiment.settings, experiment.recipe, 1, 1)
    model = build_model(experiment.recipe.model)
    model.load_state_dict(experiment.weights)
    loss = torch.nn.functional.cross_entropy(model(draw.images), draw.labels)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    sent, said = local_training(experiment.recipe, experiment.weights, draw, "cpu")
    torch.testing.assert_close(list(sent.values()), list(expected))
    assert said == pytest.approx(loss.item())


def test_batch_normalisation_is_trained_in_evaluation_mode() -> None:
    overrides = (f"model.factory={FACTORY}", "client.update=weights", "strategy.name=FedAvg", "client.local_steps=2")
    with trusting():
        experiment = prepare(without_classifier(*overrides))
        draw = private_draw(experiment.settings, experiment.recipe, 0, 1)
        sent, _ = local_training(experiment.recipe, experiment.weights, draw, "cpu")
    moved = {name for name, value in sent.items() if not torch.equal(value, experiment.weights[name])}
    assert {"1.weight", "1.bias"} < moved
    assert not moved & {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    with trusting(), pytest.raises(SettingsError, match="predicts something else for an image when others are beside"):
        prepare(without_classifier(*overrides, "model.factory_args.running_statistics=false"))
    with trusting(), pytest.raises(SettingsError, match=r"predicts \[2, 3\] for .*; allowed: a logit for each of 10"):
        prepare(without_classifier(*overrides, "model.factory_args.num_classes=3"))


def without_classifier(*overrides: str) -> ExperimentSettings:
    return load_settings(ExperimentSettings, {**BASE, "model": {}}, overrides)
