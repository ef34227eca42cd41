import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from attacks.observation import CaptureError, Observation, ThreatModel, UpdateId
from fl_sim.network import CLASSIFIERS, LocalOptimizer
from tests.attacks.conftest import CLASS_CONDITIONAL, MODEL, Victim, make_classification_victim, make_victim

WEIGHT = "conv_in.weight"


def write_capture(path: Path, victim: Victim, facts: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """The victim's capture with some metadata replaced (None: removed) and some tensors (None: removed)."""
    victim.observation.save(path)
    with safe_open(path, framework="pt") as file:
        observation = json.loads(file.metadata()["observation"])
    observation = {key: value for key, value in (observation | (facts or {})).items() if value is not None}
    contents = {name: value for name, value in (load_file(path) | tensors).items() if value is not None}
    save_file(contents, path, metadata={"observation": json.dumps(observation)})
    return path


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        Observation.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("known", [True, False])
def test_what_is_saved_is_loaded(tmp_path, known):
    optimizer = LocalOptimizer(lr=0.1, momentum=0.5)
    saved = make_victim((3, 700), known=known, local_steps=2, optimizer=optimizer).observation
    saved.save(tmp_path / "capture.safetensors")
    loaded = Observation.load(tmp_path / "capture.safetensors")
    assert loaded.circumstances == saved.circumstances
    for kind in ("weights", "update"):
        torch.testing.assert_close(getattr(loaded, kind), getattr(saved, kind), rtol=0, atol=0)
    assert loaded.threat is (ThreatModel.KNOWN if known else ThreatModel.PRIVATE)
    if known:
        assert torch.equal(loaded.noise, saved.noise)
        assert torch.equal(loaded.timesteps, saved.timesteps)


def test_a_private_capture_holds_weights_update_and_circumstances_only(tmp_path, victim):
    victim.observation.save(tmp_path / "capture.safetensors")
    with safe_open(tmp_path / "capture.safetensors", framework="pt") as file:
        assert {name.split("/")[0] for name in file.keys()} == {"weights", "update"}  # noqa: SIM118 (no mapping)
        assert set(file.metadata()) == {"observation"}


@pytest.mark.parametrize("kept_bytes", [0, 7, 1000, -1])
def test_a_truncated_file_is_refused(tmp_path, victim, kept_bytes):
    path = write_capture(tmp_path / "capture", victim)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    assert_refused(path, "not a readable capture")


def test_a_missing_file_is_refused(tmp_path):
    assert_refused(tmp_path / "nothing", "not a readable capture")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a capture was unpickled",)


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_pickle_is_refused_and_not_opened(tmp_path, dump):
    path = tmp_path / "capture"
    with path.open("wb") as file:
        dump(Bomb(), file)
    assert_refused(path, "not a readable capture")


@pytest.mark.parametrize("metadata", [None, {"checkpoint": "{}"}])
def test_a_safetensors_file_of_another_kind_is_refused(tmp_path, metadata):
    save_file({"a": torch.zeros(1)}, tmp_path / "capture", metadata=metadata)
    assert_refused(tmp_path / "capture", "metadata has no 'observation'")


def test_metadata_that_is_not_json_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "capture", metadata={"observation": "{round: 1"})
    assert_refused(tmp_path / "capture", "is not JSON")


@pytest.mark.parametrize("text", ["[" * 5000 + "]" * 5000, '{"round": ' + "9" * 5000 + "}", '{"round": NaN}', "1e400"])
def test_metadata_that_no_reader_can_hold_is_refused(tmp_path, text):
    save_file({"a": torch.zeros(1)}, tmp_path / "capture", metadata={"observation": text})
    assert_refused(tmp_path / "capture", "is not JSON")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"update/{WEIGHT}": torch.ones(16, 3, 3, 4)}, r"update/conv_in.weight has shape \[16, 3, 3, 4\]"),
        ({f"weights/{WEIGHT}": torch.full((16, 3, 3, 3), torch.nan)}, "weights/conv_in.weight holds NaN or infinite"),
        ({f"update/{WEIGHT}": torch.full((16, 3, 3, 3), torch.inf)}, "update/conv_in.weight holds NaN or infinite"),
        ({f"update/{WEIGHT}": torch.ones(16, 3, 3, 3).double()}, "update/conv_in.weight is torch.float64"),
        ({f"weights/{WEIGHT}": None}, "weights/conv_in.weight is missing"),
        ({"labelz": torch.ones(1)}, "'labelz' is no tensor of a capture; allowed: weights/"),
        ({"update/conv_in.wait": torch.ones(1)}, "update/conv_in.wait is no parameter"),
        ({"noise": torch.zeros(1, 3, 8, 8)}, "noise and timesteps come together"),
        ({"noise": torch.zeros(2, 3, 8, 8), "timesteps": torch.tensor([1, 2])}, "noise has shape"),
        ({"noise": torch.full((1, 3, 8, 8), torch.nan), "timesteps": torch.tensor([1])}, "noise must be torch.float32"),
        ({"noise": torch.zeros(1, 3, 8, 8).double(), "timesteps": torch.tensor([1])}, "noise must be torch.float32"),
        ({"noise": torch.zeros(1, 3, 8, 8), "timesteps": torch.tensor([1.0])}, "timesteps must be int64"),
        ({"noise": torch.zeros(1, 3, 8, 8), "timesteps": torch.tensor([1000])}, r"timesteps must lie in 0\.\.999"),
        ({"noise": torch.zeros(1, 3, 8, 8), "timesteps": torch.tensor([-1])}, r"timesteps must lie in 0\.\.999"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, victim, tensors, message):
    assert_refused(write_capture(tmp_path / "capture", victim, **tensors), message)


def test_an_update_that_is_zero_or_absent_is_refused(tmp_path, victim):
    zeros = {f"update/{name}": torch.zeros_like(value) for name, value in victim.observation.update.items()}
    assert_refused(write_capture(tmp_path / "zero", victim, **zeros), "zero everywhere")
    assert_refused(write_capture(tmp_path / "none", victim, **dict.fromkeys(zeros)), "update is empty")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"round": None}, "observation.round: field required"),
        ({"round": 0}, "observation.round: input should be greater than or equal to 1"),
        ({"round": True}, "observation.round: input should be a valid integer"),
        ({"num_examples": "3"}, "observation.num_examples: input should be a valid integer"),
        ({"noise_offset": True}, "observation.noise_offset: input should be a valid number"),
        ({"model": MODEL | {"_class_name": ["UNet2DModel"]}}, "the configuration cannot be used|is not allowed"),
        ({"model": MODEL | {"_class_name": {"a": 1}}}, "the configuration cannot be used|is not allowed"),
        ({"model": MODEL | {"layers_per_block": 10**6}}, "model.layers_per_block = 1000000"),
        ({"model": MODEL | {"block_out_channels": [65536, 65536]}}, "parameters; allowed: at most"),
        ({"model": MODEL | {"down_block_types": [1, 2]}}, "model.down_block_types.0 = 1: input should be a valid str"),
        ({"scheduler": {"num_train_timesteps": 10**12}}, "scheduler.num_train_timesteps = 1000000000000"),
        ({"scheduler": {"trained_betas": [[0.1]]}}, "scheduler.trained_betas.0 = "),
        ({"defence": {"quantisation_levels": 10**30}}, "observation.defence.quantisation_levels: .* less than"),
        ({"defence": {"clip_norm": 1e-9, "noise_std": 1e300}}, "observation.defence.noise_std: .* less than or equal"),
        ({"colour": "red"}, "observation.colour: extra inputs"),
        ({"format": 3}, "observation.format"),
        ({"task": "regression"}, "observation.task: .*'regression'.*'diffusion', 'classification'"),
        ({"scheduler": None}, "observation.scheduler: field required"),
        ({"num_classes": 10}, "observation.num_classes: extra inputs"),
        ({"value_range": [0, 1]}, "observation.value_range"),
        ({"batch_size": 0}, "observation.batch_size"),
        ({"prediction_type": "v_prediction"}, "prediction_type differs from the scheduler's"),
        ({"update": "delta"}, "needs local_optimizer"),
        ({"local_steps": 2}, "update 'gradient' has local_steps 1"),
        ({"ema_decay": 0.9}, "update 'gradient' has ema_decay null"),
        ({"dtype": "float8"}, "observation.dtype"),
        ({"min_snr_gamma": 0}, "observation.min_snr_gamma"),
        ({"num_clients": 3}, "client is -1 exactly if"),
        ({"local_optimizer": {"name": "sgd", "lr": 0}}, "observation.local_optimizer.lr"),
        ({"model": {"_class_name": "os.system"}}, "model._class_name 'os.system' is not allowed"),
        (
            {"scheduler": {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"}},
            "'PNDMScheduler' is not allowed",
        ),
        ({"scheduler": {"betas": [0.1], "prediction_type": "epsilon"}}, "unknown keys: betas"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(tmp_path, victim, facts, message):
    assert_refused(write_capture(tmp_path / "capture", victim, facts), message)


def test_private_configuration_keys_are_ignored(tmp_path, victim):
    circumstances = victim.observation.circumstances
    facts = {"model": circumstances.model | {"_diffusers_version": "9.9", "_name_or_path": "/somewhere"}}
    loaded = Observation.load(write_capture(tmp_path / "capture", victim, facts))
    torch.testing.assert_close(loaded.update, victim.observation.update)


def test_an_update_of_a_part_of_the_parameters_is_accepted(victim):
    update = {WEIGHT: victim.observation.update[WEIGHT]}
    assert replace(victim.observation, update=update).update == update


def test_a_sighting_says_who_was_seen_and_by_whom_and_makes_a_file_name():
    assert UpdateId(1, 3).stem == "round-0001-client-0003"
    assert UpdateId(1, 3, 5).stem == "round-0001-client-0003-peer-0005"
    assert UpdateId(1, -1).stem == "round-0001-sum"
    assert str(UpdateId(1, 3, 5)) == "round 1 client 3 seen by peer 5"
    assert str(UpdateId(1, -1)) == "round 1 sum of clients"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_in_a_file_become_float32_exactly_and_are_refused_elsewhere(tmp_path, known_victim, dtype):
    seen = known_victim.observation
    kinds = {"weights": seen.weights, "update": seen.update}
    halves = {f"{kind}/{name}": value.to(dtype) for kind, named in kinds.items() for name, value in named.items()}
    loaded = Observation.load(write_capture(tmp_path / "capture", known_victim, **halves, noise=seen.noise.to(dtype)))
    assert torch.equal(loaded.update[WEIGHT], halves[f"update/{WEIGHT}"].float())
    assert torch.equal(loaded.noise, seen.noise.to(dtype).float())
    assert loaded.circumstances.dtype == str(dtype).removeprefix("torch.")
    weights = {name: value for name, value in halves.items() if name.startswith("weights/")}
    assert (
        Observation.load(write_capture(tmp_path / "weights", known_victim, **weights)).circumstances.dtype == "float32"
    )
    with pytest.raises(CaptureError, match=r"expected torch\.float32"):
        replace(seen, update={name: value.to(dtype) for name, value in seen.update.items()})


@pytest.mark.parametrize(
    ("model", "image_shape", "message"),
    [
        (MODEL | {"class_embed_type": "identity"}, [3, 8, 8], "embeds class labels by"),
        (MODEL | {"out_channels": 6}, [3, 8, 8], "predicts a variance"),
        (MODEL, [1, 8, 8], "the images have 1"),
        (
            MODEL,
            [3, 7, 8],
            "7x8 pixels do not go through a network of 2 levels; allowed: sides that are multiples of 2",
        ),
        (MODEL, [3, -8, 8], "observation.image_shape.1: input should be greater than"),
        (MODEL | {"time_embedding_type": "none"}, [3, 8, 8], "cannot be built"),
    ],
)
def test_a_network_that_cannot_have_made_the_update_is_refused(tmp_path, victim, model, image_shape, message):
    assert_refused(write_capture(tmp_path / "capture", victim, {"model": model, "image_shape": image_shape}), message)


def test_names_that_are_not_the_models_are_told_apart(victim):
    update = {f"unet.{name}": value for name, value in victim.observation.update.items()}
    with pytest.raises(CaptureError, match=r"came: unet\.conv_in.*the model's: conv_in.*without 'unet\.' in front"):
        replace(victim.observation, update=update)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("capture", Path.mkdir, "it is a folder"),
        ("capture", Path.touch, "it is empty"),
        ("capture.pt", lambda path: torch.save({}, path), "it is a pickle, which is never opened"),
    ],
)
def test_what_is_no_capture_is_called_by_its_name(tmp_path, name, make, message):
    make(tmp_path / name)
    assert_refused(tmp_path / name, f"not a readable capture: {message}")


def test_known_labels_are_saved_and_loaded(tmp_path):
    seen = make_victim((3, 700), known=True, model_config=CLASS_CONDITIONAL, labels=(4, 9)).observation
    seen.save(tmp_path / "capture")
    assert Observation.load(tmp_path / "capture").labels.tolist() == [4, 9]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "noise and timesteps are known, and labels are missing"),
        (torch.tensor([4]), r"labels must be int64 of shape \[2\]"),
        (torch.tensor([4.0, 9.0]), r"labels must be int64 of shape \[2\]"),
        (torch.tensor([4, 10]), r"labels must lie in 0\.\.9"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    seen = make_victim((3, 700), known=True, model_config=CLASS_CONDITIONAL, labels=(4, 9)).observation
    with pytest.raises(CaptureError, match=message):
        replace(seen, labels=labels)


def test_labels_of_a_network_that_takes_none_are_refused(known_victim):
    with pytest.raises(CaptureError, match="labels are there, but the network takes none"):
        replace(known_victim.observation, labels=torch.tensor([1]))


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["observation"])
    return facts


def test_a_capture_says_its_task_beside_all_else(tmp_path, victim):
    victim.observation.save(tmp_path / "diffusion")
    make_classification_victim().observation.save(tmp_path / "classification")
    denoiser, classifier = (metadata(tmp_path / name) for name in ("diffusion", "classification"))
    assert (denoiser["format"], denoiser["task"], denoiser["prediction_type"]) == (2, "diffusion", "epsilon")
    assert (classifier["format"], classifier["task"], classifier["num_classes"]) == (2, "classification", 10)
    assert denoiser.keys() - classifier.keys() == {"scheduler", "prediction_type", "min_snr_gamma", "noise_offset"}
    assert classifier.keys() - denoiser.keys() == {"num_classes"}


def test_format_1_is_read_and_means_diffusion(tmp_path, victim):
    path = write_capture(tmp_path / "capture", victim, {"format": 1, "task": None})
    assert Observation.load(path).circumstances.task == victim.observation.circumstances.task
    path = write_capture(tmp_path / "classifier", make_classification_victim(), {"format": 1})
    assert_refused(path, "format 1 knows diffusion alone")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_an_update_of_a_classifier_is_saved_and_loaded(tmp_path, known, classifier):
    optimizer = LocalOptimizer(lr=0.1)
    victim = make_classification_victim(
        (3, 1, 3, 0), classifier=classifier, known=known, local_steps=2, optimizer=optimizer
    )
    victim.observation.save(tmp_path / "capture")
    loaded = Observation.load(tmp_path / "capture")
    assert loaded.circumstances == victim.observation.circumstances
    assert loaded.threat is (ThreatModel.KNOWN if known else ThreatModel.PRIVATE)
    assert (loaded.noise, loaded.timesteps) == (None, None)
    assert (loaded.labels.tolist() if known else loaded.labels) == ([3, 1, 3, 0] if known else None)


def test_a_private_capture_of_a_classifier_holds_no_label(tmp_path):
    make_classification_victim().observation.save(tmp_path / "capture")
    assert {name.split("/")[0] for name in load_file(tmp_path / "capture")} == {"weights", "update"}


@pytest.mark.parametrize(
    ("facts", "tensors", "message"),
    [
        ({"num_classes": 1}, {}, "observation.num_classes: input should be greater than or equal to 2"),
        ({"num_classes": None}, {}, "observation.num_classes: field required"),
        ({"num_classes": 7}, {}, "the network tells 10 classes apart, the images have 7"),
        ({"scheduler": {}}, {}, "observation.scheduler: extra inputs"),
        ({"image_shape": [1, 8, 8]}, {}, "takes images of 3 channels, the images have 1"),
        ({"image_shape": [3, 8, 9]}, {}, "takes images of 8x8 pixels, the images have 8x9"),
        ({"model": MODEL}, {}, "a UNet2DModel is no classifier; allowed: LeNet, ConvNet, ResNet"),
        ({}, {"labels": torch.tensor([10])}, r"labels must lie in 0\.\.9"),
        ({}, {"labels": torch.tensor([-1])}, r"labels must lie in 0\.\.9"),
        ({}, {"labels": torch.tensor([1, 2])}, r"labels must be int64 of shape \[1\]"),
        ({}, {"labels": torch.tensor([1.0])}, r"labels must be int64 of shape \[1\]"),
        ({}, {"noise": torch.zeros(1, 3, 8, 8), "timesteps": torch.tensor([1])}, "the task is 'classification'"),
    ],
)
def test_what_does_not_fit_a_classifier_is_refused(tmp_path, facts, tensors, message):
    victim = make_classification_victim(known=True)
    assert_refused(write_capture(tmp_path / "capture", victim, facts, **tensors), message)


def test_a_classifier_does_not_denoise(tmp_path, victim):
    model = make_classification_victim().observation.circumstances.model
    assert_refused(write_capture(tmp_path / "capture", victim, {"model": model}), "a LeNet does not denoise")
