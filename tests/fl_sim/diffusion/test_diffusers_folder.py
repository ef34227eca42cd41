import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from fl_sim.checkpoint import read_checkpoint
from fl_sim.diffusion import build_scheduler
from fl_sim.diffusion.diffusers_folder import SCHEDULERS, ddpm_config
from fl_sim.network import ConfigError, build_model, unet_config

MODEL = unet_config(16, block_out_channels=(8, 16), norm_num_groups=4, attention=True)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def unet() -> diffusers.UNet2DModel:
    torch.manual_seed(0)
    network = build_model(MODEL)
    assert isinstance(network, diffusers.UNet2DModel)
    return network


def save_pipeline(folder: Path) -> Path:
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=500, beta_schedule="squaredcos_cap_v2")
    diffusers.DDIMPipeline(unet(), scheduler).save_pretrained(folder)
    return folder


def save_model(folder: Path) -> Path:
    unet().save_pretrained(folder)
    return folder


def save_shards(folder: Path) -> Path:
    unet().save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize("save", [save_pipeline, save_model, save_shards])
def test_what_diffusers_saved_is_read_whole(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    checkpoint = read_checkpoint(save(tmp_path / "saved"))
    expected = unet().state_dict()
    assert list(checkpoint.weights) == list(expected)
    assert all(torch.equal(checkpoint.weights[name], expected[name]) for name in expected)
    assert checkpoint.dtype == "float32"
    assert checkpoint.image_shape == (3, 16, 16)
    checkpoint.check((3, 16, 16))


def test_the_noise_schedule_comes_with_the_pipeline_also_for_its_network_alone(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "saved")
    expected = diffusers.DDIMScheduler(num_train_timesteps=500, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    for place in (folder, folder / "unet"):
        assert torch.equal(build_scheduler(read_checkpoint(place).diffusion.scheduler).alphas_cumprod, expected)


@pytest.mark.parametrize("elsewhere", ["../outside.safetensors", "/outside.safetensors", 3])
def test_an_index_names_files_of_its_own_folder(tmp_path: Path, elsewhere: object) -> None:
    folder = save_shards(tmp_path / "saved")
    index = folder / f"{WEIGHTS}.index.json"
    content = json.loads(index.read_text())
    shard = next(iter(content["weight_map"].values()))
    (folder / shard).rename(tmp_path / "outside.safetensors")
    content["weight_map"] = {name: elsewhere if file == shard else file for name, file in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="as a shard; allowed: files in the folder itself"):
        read_checkpoint(folder)


def test_links_stay_in_the_folder_or_in_the_hubs_cache(tmp_path: Path) -> None:
    snapshot = save_model(tmp_path / "models--me--mine" / "snapshots" / "1a2b")
    blobs = tmp_path / "models--me--mine" / "blobs"
    blobs.mkdir()
    for file in list(snapshot.iterdir()):
        (snapshot / file.name).rename(blobs / file.name)
        file.symlink_to(Path("..", "..", "blobs", file.name))
    assert read_checkpoint(snapshot).dtype == "float32"
    outside = tmp_path / "outside"
    (blobs / WEIGHTS).rename(outside)
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(outside)
    with pytest.raises(ConfigError, match=f"{WEIGHTS} is a link to another folder"):
        read_checkpoint(snapshot)
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(WEIGHTS)
    with pytest.raises(ConfigError, match=WEIGHTS):  # a link to itself
        read_checkpoint(snapshot)


def test_half_precision_is_read_and_said(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "saved")
    save_file({name: value.half() for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.dtype == "float16"
    assert all(value.dtype == torch.float32 for value in checkpoint.weights.values())


def test_the_names_of_earlier_versions_are_read(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "saved")
    earlier = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for now, before in earlier.items():
            name = name.replace(f".{now}.", f".{before}.") if ".attentions." in name else name
        return name

    save_file({renamed(name): value for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    expected = unet().state_dict()
    weights = read_checkpoint(folder).weights
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_every_scheduler_noises_as_its_ddpm_schedule(name: str, schedule: str) -> None:
    cls = getattr(diffusers, name)
    saved = cls(beta_schedule=schedule, num_train_timesteps=200)
    config = dict(saved.config) | {"_class_name": name}
    assert torch.allclose(build_scheduler(ddpm_config(config)).alphas_cumprod, saved.alphas_cumprod, atol=1e-6)


def test_betas_of_a_list_zero_snr_sigmoid_and_the_prediction_type_are_kept() -> None:
    betas = [0.001, 0.01, 0.1]
    listed = ddpm_config({"_class_name": "PNDMScheduler", "trained_betas": betas, "num_train_timesteps": 3})
    assert build_scheduler(listed).betas.tolist() == pytest.approx(betas)
    config = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    zero = build_scheduler(ddpm_config(config))
    assert zero.alphas_cumprod[-1] == 0
    assert zero.config.prediction_type == "v_prediction"
    assert build_scheduler(ddpm_config({"beta_schedule": "sigmoid"})).config.beta_schedule == "sigmoid"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching, which cannot be attacked yet"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "allowed: DDPMScheduler, DDIMScheduler"),
        ({"_class_name": "os.system"}, "allowed: DDPMScheduler"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "cubic"}, "cannot be built"),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, "prediction_type"),
    ],
)
def test_another_scheduler_is_refused_in_one_line(config: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refusal:
        ddpm_config(config)
    assert "\n" not in str(refusal.value)


def rename_network(folder: Path, name: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": name}))


def only_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n")


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])


def leave_out_a_tensor(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights.pop("conv_in.weight")
    save_file(weights, folder / WEIGHTS)


def change_a_shape(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS) | {"conv_in.bias": torch.zeros(5)}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (only_pickle, r"pickle \(diffusion_pytorch_model.bin\), which is never opened; convert it"),
        (truncate, "no whole safetensors file"),
        (leave_out_a_tensor, "missing keys conv_in.weight"),
        (change_a_shape, "conv_in.bias"),
        (lambda folder: (folder / WEIGHTS).unlink(), "holds no safetensors file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds no table"),
        (
            lambda folder: rename_network(folder, "UNet2DConditionModel"),
            "conditioned on text, which cannot",
        ),
        (lambda folder: rename_network(folder, ["UNet2DModel"]), "allowed: UNet2DModel"),
        (lambda folder: rename_network(folder, None), "allowed: UNet2DModel"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path, spoil: Callable[[Path], object], reason: str) -> None:
    folder = save_model(tmp_path / "saved")
    spoil(folder)
    with pytest.raises(ConfigError, match=reason) as refusal:
        read_checkpoint(folder)
    assert "\n" not in str(refusal.value)


def test_a_pipeline_without_its_network_is_one_line(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "saved")
    shutil.rmtree(folder / "unet")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read: No such file"):
        read_checkpoint(folder)


def test_a_folder_of_something_else_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"a folder without model_index\.json and config\.json; allowed: a safetensors"
    ):
        read_checkpoint(tmp_path)


def test_a_network_of_latents_is_refused(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "saved")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(ConfigError, match="works on the latents of a vqvae"):
        read_checkpoint(folder)
