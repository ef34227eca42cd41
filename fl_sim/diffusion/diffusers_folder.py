"""Folders that diffusers saved: a pipeline (``model_index.json``, ``unet/``, ``scheduler/``) or a model alone.

Weights are read from safetensors files, one or several shards; a pickle is never opened. The scheduler that a sampler
was saved with says how images were noised in training: its betas are taken over into a DDPM noise schedule.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fl_sim.diffusion.noise_schedule import ScheduleLimits, build_scheduler, scheduler_config
from fl_sim.errors import message, quiet
from fl_sim.network.configuration import ConfigError, from_config
from fl_sim.network.json_text import parse_json
from fl_sim.network.network import outline
from fl_sim.network.unet import MODEL_CLASSES

SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "LCMScheduler",
)
"""Schedulers of diffusers whose betas define the forward process of DDPM (arXiv 2006.11239, eq. 4)."""

FORWARD_PROCESS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""The keys of a scheduler's configuration that say how training noises images and what the network predicts."""

SAME_PROCESS = 1e-6
"""Two schedules are the same if alphas_cumprod differs by no more. Some samplers lift the last one, 0, to 2^-24."""

_REFUSED = {
    "UNet2DConditionModel": "it is conditioned on text, which cannot be attacked yet",
    "UNet3DConditionModel": "it makes videos, which cannot be attacked yet",
    "SD3Transformer2DModel": "it is trained by flow matching, which cannot be attacked yet",
    "FluxTransformer2DModel": "it is trained by flow matching, which cannot be attacked yet",
}


def is_diffusers_folder(path: Path) -> bool:
    """Whether ``path`` is a folder with a pipeline or a model of diffusers in it."""
    return path.is_dir() and any((path / name).is_file() for name in ("model_index.json", "config.json"))


def read_diffusers_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any], str]:
    """Weights by name as float32, the configurations of network and noise schedule, and the weights' types as saved.

    A model without a scheduler beside it gets the noise schedule of DDPM (arXiv 2006.11239, section 4).

    Raises:
        ConfigError: if a part is missing, damaged, or of a kind that cannot be trained here.
    """
    network = folder / "unet" if (folder / "model_index.json").is_file() else folder
    for part in (folder, network, folder / "scheduler", network.parent / "scheduler"):
        _check_links(part)
    if network != folder:
        _check_pipeline(_read_json(folder / "model_index.json"))
    model = read_network_config(network / "config.json")
    saved = [place / "scheduler" / "scheduler_config.json" for place in (folder, network.parent)]
    scheduler = next((ddpm_config(_read_json(file)) for file in saved if file.is_file()), scheduler_config())
    outline(model)
    types = _check_weight_files(network)
    return _weights(network, model), model, scheduler, types


def ddpm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The DDPM noise schedule with the forward process that any of the SCHEDULERS' configurations describes.

    Raises:
        ConfigError: if the scheduler is another one, or diffusers refuses its configuration.
    """
    name = config.get("_class_name", "DDPMScheduler")
    if name not in SCHEDULERS:
        flow = " it is for flow matching, which cannot be attacked yet;" if "FlowMatch" in str(name) else ""
        raise ConfigError(f"scheduler {name!r}:{flow} allowed: {', '.join(SCHEDULERS)}")
    given = {key: config[key] for key in FORWARD_PROCESS if key in config}
    other = from_config(getattr(diffusers, name), given, "scheduler", ScheduleLimits)
    settled = {key: other.config[key] for key in FORWARD_PROCESS if key in other.config}
    betas = settled.get("trained_betas")
    if betas is not None:
        settled["trained_betas"] = [float(beta) for beta in betas]
    settled = {"_class_name": "DDPMScheduler", **{key: value for key, value in settled.items() if value is not None}}
    same = build_scheduler(settled)
    if not torch.allclose(same.alphas_cumprod, other.alphas_cumprod, rtol=0, atol=SAME_PROCESS):
        raise ConfigError(f"scheduler {name!r} noises images in another way than DDPM with the same betas")
    return settled


def _check_pipeline(parts: Mapping[str, Any]) -> None:
    for coder in ("vae", "vqvae"):
        if parts.get(coder) is not None:
            raise ConfigError(f"its network works on the latents of a {coder}, which cannot be attacked yet")


def read_network_config(file: Path) -> dict[str, Any]:
    """The configuration of a network in a ``config.json`` of diffusers.

    Raises:
        ConfigError: if it cannot be read, or is of a class that cannot be trained here.
    """
    config = _read_json(file)
    name = config.get("_class_name")
    if name not in MODEL_CLASSES:
        reason = _REFUSED.get(str(name), f"allowed: {', '.join(MODEL_CLASSES)}")
        raise ConfigError(f"its network is a {name!r}: {reason}")
    return {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file.name} is not JSON: {message(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file.name} holds no table")
    return content


def _check_weight_files(folder: Path) -> str:
    """The types of the weights in the folder's safetensors files; ConfigError if there are none, or damaged ones."""
    files = sorted(folder.glob("*.safetensors"))
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    if not files and pickles:
        raise ConfigError(
            f"its weights are a pickle ({pickles[0]}), which is never opened; convert it where you trust it: "
            "UNet2DModel.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(FOLDER)"
        )
    if not files:
        raise ConfigError(f"{folder.name} holds no safetensors file")
    types: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                types |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 (no dict)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{file.name} is no whole safetensors file: {message(error)}") from error
    return ", ".join(sorted(_TYPES.get(kind, kind.lower()) for kind in types))


def _check_links(folder: Path) -> None:
    """Refuse what would be read from elsewhere: an index that names other folders, links that leave this one.

    The hub's cache is made of links: ``snapshots/REVISION/…`` to ``blobs/…`` beside it.
    """
    blobs = [above.parent / "blobs" for above in folder.absolute().parents if above.name == "snapshots"]
    places = [os.path.realpath(place) for place in (folder, *blobs)]
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.is_symlink() and not any(Path(os.path.realpath(file)).is_relative_to(place) for place in places):
            raise ConfigError(f"{file.name} is a link to another folder; allowed: files in the folder itself")
    for index in folder.glob("*.safetensors.index.json"):
        shards = _read_json(index).get("weight_map")
        for shard in shards.values() if isinstance(shards, dict) else [shards]:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ConfigError(f"{index.name} names {shard!r} as a shard; allowed: files in the folder itself")


_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _weights(folder: Path, model: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's state as diffusers reads it, which knows shards and the names of earlier versions."""
    cls = getattr(diffusers, model["_class_name"])
    try:
        with quiet("diffusers"):
            network, found = cls.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except Exception as error:  # diffusers raises any exception for a file that does not fit
        raise ConfigError(f"its weights cannot be read: {message(error)}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[problem]:
            raise ConfigError(
                f"its weights do not fit its config.json: {problem.replace('_', ' ')} {found[problem][0]}"
            )
    weights: dict[str, Tensor] = {name: value.detach().float() for name, value in network.state_dict().items()}
    return weights
