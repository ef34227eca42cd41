from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from experiments.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from experiments.experiment import prepare
from experiments.leakage import TIME_COLUMNS
from experiments.utility import Utility
from fl_sim.checkpoint import Checkpoint
from fl_sim.client_app import private_draw
from fl_sim.config import SettingsError
from fl_sim.diffusion import DiffusionTask, scheduler_config
from fl_sim.network import build_model, unet_config
from tests.experiments.in_process import run_in_process
from tests.experiments.made_up_run import tiny_settings

MODEL = unet_config(16, block_out_channels=(8, 8), norm_num_groups=4)
TASK = DiffusionTask.on(scheduler_config())


def checkpoint() -> Checkpoint:
    return Checkpoint(build_model(MODEL).state_dict(), MODEL, TASK, {"photographs": ["china"]})


def truncated(path: Path) -> None:
    save_checkpoint(path, checkpoint())
    path.write_bytes(path.read_bytes()[:5000])


def without_metadata(path: Path) -> None:
    save_file(checkpoint().weights, path)


def without_scheduler(path: Path) -> None:
    save_file(checkpoint().weights, path, metadata={"checkpoint": '{"model": {}}'})


def of_another_model(path: Path) -> None:
    other = unet_config(16, block_out_channels=(8, 16), norm_num_groups=4)
    save_checkpoint(path, Checkpoint(checkpoint().weights, other, TASK, {}))


def of_a_strange_class(path: Path) -> None:
    save_checkpoint(path, Checkpoint(checkpoint().weights, {"_class_name": "os.system"}, TASK, {}))


def no_tensors_at_all(path: Path) -> None:
    path.write_text("hello")


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        without_metadata,
        without_scheduler,
        of_another_model,
        of_a_strange_class,
        no_tensors_at_all,
        Path.mkdir,
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(tmp_path / "model.safetensors")
    with pytest.raises(SettingsError, match="not a usable checkpoint") as refusal:
        load_checkpoint(tmp_path / "model.safetensors")
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"model\.checkpoint = .*not a usable checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")


def save_network(path: Path, size: int = 16, **changes: Any) -> str:
    """A checkpoint of an untrained network; the setting that names it."""
    model = unet_config(size, block_out_channels=(8, 8, 8), norm_num_groups=4) | changes
    save_checkpoint(path, Checkpoint(build_model(model).state_dict(), model, TASK, {}))
    return f"model.checkpoint={path}"


FOUR = {
    "block_out_channels": [8] * 4,
    "down_block_types": ["DownBlock2D"] * 4,
    "up_block_types": ["UpBlock2D"] * 4,
}


@pytest.mark.parametrize(
    ("size", "changes", "reason"),
    [
        (16, {"class_embed_type": "timestep"}, "embeds class labels by"),
        (16, {"out_channels": 6}, "predicts a variance"),
        (16, {"in_channels": 1}, "takes images of 1 channels and predicts 3"),
        (16, {"sample_size": [16, 0]}, r"model.sample_size = \[16, 0\]"),
        ([28, 16], FOUR, "allowed: sides that are multiples of 8"),
        (28, FOUR, "allowed: sides that are multiples of 8"),
    ],
)
def test_a_network_that_clients_cannot_train_is_one_line(
    tmp_path: Path, size: int | list[int], changes: dict[str, Any], reason: str
) -> None:
    where = save_network(tmp_path / "model.safetensors", size, **changes)
    with pytest.raises(SettingsError, match=rf"model\.checkpoint = .*not a usable checkpoint: .*{reason}") as refusal:
        prepare(tiny_settings(where, "attack.name=none"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("sample_size", [[16, 16], None])
def test_a_pair_of_sides_and_no_size_at_all_are_taken(tmp_path: Path, sample_size: Any) -> None:
    where = save_network(tmp_path / "model.safetensors", sample_size=sample_size)
    assert prepare(tiny_settings(where, "attack.name=none")).recipe.image_shape == (3, 16, 16)


def test_the_images_have_the_shape_that_the_network_says(tmp_path: Path) -> None:
    grey = {"in_channels": 1, "out_channels": 1}
    where = save_network(tmp_path / "model.safetensors", [12, 20], **grey)
    given = (where, "attack.name=none")
    assert prepare(tiny_settings(*given, "data.image_size=[12, 20]")).recipe.image_shape == (1, 12, 20)
    with pytest.raises(SettingsError, match=r"data\.image_size = 16: the checkpoint has \[12, 20\]; allowed: that"):
        prepare(tiny_settings(*given, "data.image_size=16"))
    with pytest.raises(SettingsError, match=r"data\.channels = 3: the network takes images of 1; allowed: that"):
        prepare(tiny_settings(*given, "data.image_size=[12, 20]", "data.channels=3"))
    two = save_network(tmp_path / "two.safetensors", in_channels=2, out_channels=2)
    with pytest.raises(SettingsError, match=r"takes images of 2 channels; allowed: 1 \(grey\) or 3 \(RGB\)"):
        prepare(tiny_settings(two, "attack.name=none"))


@pytest.mark.parametrize(
    ("overrides", "channels"),
    [
        ((), 3),
        (("data.channels=1",), 1),
        (("data.name=digits",), 3),
        (("model.unet={in_channels = 1}",), 1),
        (("model.config=small",), 3),
        (("model.config=small", "model.unet={in_channels = 1, out_channels = 1}"), 1),
    ],
)
def test_an_untrained_network_has_the_channels_of_the_settings(overrides: tuple[str, ...], channels: int) -> None:
    settings = tiny_settings("model.checkpoint=none", "attack.name=none", *overrides)
    recipe = prepare(settings).recipe
    assert recipe.image_shape == (channels, 16, 16)
    assert private_draw(settings, recipe, 0, 1)[0].shape == (1, channels, 16, 16)
    if "model.config=small" in overrides and channels == 3:
        with pytest.raises(SettingsError, match=r"data\.channels = 1: the network takes images of 3"):
            prepare(tiny_settings("model.checkpoint=none", "attack.name=none", *overrides, "data.channels=1"))


def test_a_network_without_a_size_meets_the_images_that_do_not_go_through_it(tmp_path: Path) -> None:
    where = save_network(tmp_path / "model.safetensors", **FOUR, sample_size=None)
    with pytest.raises(SettingsError, match=r"data\.image_size = 28: images of 28x28 pixels"):
        prepare(tiny_settings(where, "attack.name=none", "data.image_size=28"))


def test_a_size_that_no_setting_can_agree_with_is_not_recommended(tmp_path: Path) -> None:
    where = save_network(tmp_path / "model.safetensors", 8)
    with pytest.raises(SettingsError, match=r"takes images of 8x8 pixels, .*greater than or equal to 11"):
        prepare(tiny_settings(where, "attack.name=none"))


def test_an_untrained_network_of_too_many_levels_is_one_line() -> None:
    levels = "model.block_out_channels=[8,8,8,8]"
    with pytest.raises(SettingsError, match=r"data\.image_size = 28: .*sides that are multiples of 8"):
        prepare(tiny_settings("model.checkpoint=none", "data.image_size=28", levels, "attack.name=none"))


def test_a_28_pixel_checkpoint_of_three_levels_runs(tmp_path: Path) -> None:
    where = save_network(tmp_path / "model.safetensors", 28)
    settings = tiny_settings(where, "data.image_size=28", "attack.name=tests.attacks.toy_attacks:Guess")
    run = run_in_process(tmp_path / "run", settings)
    assert set(pd.read_csv(run.leakage_csv)["status"]) == {"ok"}


def test_dropout_is_drawn_from_the_private_seed(tmp_path: Path) -> None:
    where = save_network(tmp_path / "model.safetensors", dropout=0.3)
    attacked = ("attack.name=residual", "attack.args.residual.max_evaluations=3", "attack.clients=[0]")
    settings = [
        tiny_settings(where, f"client.seed={private}", *attack)
        for private, attack in ((4, attacked), (4, attacked), (5, ("attack.name=none",)))
    ]
    tables, rounds = [], []
    for number, chosen in enumerate(settings):
        torch.manual_seed(number)  # what else draws in this process must not matter
        run = run_in_process(tmp_path / str(number), chosen)
        tables.append(pd.read_csv(run.leakage_csv).drop(columns=["run", *TIME_COLUMNS]))
        rounds.append(pd.read_parquet(run.rounds)[["train_loss", "weights_sha256"]])
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(rounds[0], rounds[1])
    assert not rounds[0].equals(rounds[2])


def test_held_out_losses_and_samples_are_without_dropout(tmp_path: Path) -> None:
    settings = tiny_settings(save_network(tmp_path / "model.safetensors", dropout=0.9), "attack.name=none")
    experiment = prepare(settings)
    utility = Utility(settings, experiment.recipe)
    without = Utility(
        settings, experiment.recipe.model_copy(update={"model": experiment.recipe.model | {"dropout": 0}})
    )
    assert utility.measure(experiment.weights) == without.measure(experiment.weights)
    assert torch.equal(utility.sample(experiment.weights)[0], without.sample(experiment.weights)[0])


def test_weights_come_in_the_networks_order_whatever_the_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, checkpoint())
    assert list(load_checkpoint(path).weights) == list(build_model(MODEL).state_dict())


def test_a_folder_of_diffusers_is_trained_and_attacked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    build_model(MODEL).save_pretrained(tmp_path / "saved")
    settings = tiny_settings(f"model.checkpoint={tmp_path / 'saved'}", "attack.args.residual.max_evaluations=3")
    directory = run_in_process(tmp_path / "run", settings)
    assert set(pd.read_parquet(directory.leakage_parquet)["status"]) == {"ok"}
    assert f'checkpoint = "{tmp_path / "saved"}"' in directory.config.read_text()


def test_a_hub_id_is_looked_up_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = "0" * 40
    cached = tmp_path / "models--someone--ddpm"
    build_model(MODEL).save_pretrained(cached / "snapshots" / revision)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_checkpoint("someone/ddpm") == cached / "snapshots" / revision
    assert load_checkpoint(find_checkpoint("someone/ddpm")).image_shape == (3, 16, 16)
    with pytest.raises(SettingsError, match=r"model\.checkpoint = 'someone/else': .*no such model in the hub's cache"):
        find_checkpoint("someone/else")
    assert find_checkpoint("./someone/else") == Path("./someone/else")
