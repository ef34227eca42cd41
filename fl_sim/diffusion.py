"""The denoising diffusion model: network, noise schedule, training loss and its targets.

Ground floor of the project: it imports no other room, and both the honest client and the attacks build on it.
Notation follows DDPM (Ho et al. 2020, arXiv 2006.11239): ``x0`` is an image in [-1, 1], ``noise`` is epsilon ~ N(0, I),
``timesteps`` are integers in 0..T-1, ``alphas_cumprod`` is the cumulative product of 1 - beta.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fl_sim.errors import UserError, dotted, first_error, message

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MODEL_CLASSES = ("UNet2DModel",)
LORA = "lora"
"""Key of a model's configuration, beside those of diffusers."""


class ConfigError(UserError):
    """A model or scheduler configuration that cannot be built; the message is one line."""


class LocalOptimizer(BaseModel):
    """The optimiser of a client's local steps; torch's meaning of every field but two.

    ``proximal_mu`` is the weight mu of FedProx's term mu/2 ||w - w_sent||^2 in the loss (arXiv 1812.06127, eq. 2).
    A step's gradient, that term included, is then scaled down to the norm ``max_grad_norm`` if it exceeds it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(gt=0, allow_inf_nan=False)
    momentum: float = Field(0.0, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    proximal_mu: float = Field(0.0, ge=0, allow_inf_nan=False)
    max_grad_norm: float | None = Field(None, gt=0, allow_inf_nan=False)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over ``parameters``."""
        if self.name == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)


class LoRA(BaseModel):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): a layer W becomes W + alpha/rank B A; B and A alone train.

    ``targets``: glob patterns of the names of linear and convolutional layers, such as ``*.to_q``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)
    targets: tuple[str, ...] = Field(("*",), min_length=1)


def adapt(model: nn.Module, lora: LoRA) -> nn.Module:
    """``model`` with adapters in it, all else frozen; it computes what it did before, as B starts at zero.

    The layers' own parameters are then called ``<layer>.base_layer.…``, the adapters' ``<layer>.lora_A.default.weight``
    and ``<layer>.lora_B.default.weight``.

    Raises:
        ConfigError: if no layer's name matches, or peft is not installed.
    """
    try:
        # Imported late: it brings in the whole of transformers.
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("LoRA needs peft, which is not installed: pip install 'fl-sim[lora]'") from error
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    chosen = matching_names(layers, lora.targets)
    if not chosen:
        raise ConfigError(f"LoRA targets {list(lora.targets)} match no layer; layers: {', '.join(layers)}")
    pattern = "|".join(re.escape(name) for name in chosen)
    return inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=pattern), model)


def matching_names(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match one of the glob patterns or more, in their own order."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def unet_config(
    image_size: int,
    channels: int = 3,
    block_out_channels: tuple[int, ...] = (32, 64),
    layers_per_block: int = 1,
    norm_num_groups: int = 8,
    attention: bool = False,
) -> dict[str, Any]:
    """Configuration of a small ``diffusers.UNet2DModel`` in the form that captures and checkpoints store.

    The time embedding is as wide as the first block, as in diffusers; attention, if any, sits in the innermost blocks.
    """
    depth = len(block_out_channels)
    inner = "Attn" if attention else ""
    return {
        "_class_name": "UNet2DModel",
        "sample_size": image_size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(block_out_channels),
        "layers_per_block": layers_per_block,
        "norm_num_groups": norm_num_groups,
        "down_block_types": ["DownBlock2D"] * (depth - 1) + [f"{inner}DownBlock2D"],
        "up_block_types": [f"{inner}UpBlock2D"] + ["UpBlock2D"] * (depth - 1),
        "add_attention": attention,
    }


def scheduler_config(num_train_timesteps: int = 1000, prediction_type: str = "epsilon") -> dict[str, Any]:
    """Configuration of a DDPM noise schedule with linear beta from 1e-4 to 0.02 (arXiv 2006.11239, section 4)."""
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": num_train_timesteps,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction_type": prediction_type,
    }


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the network that ``config`` describes, with torch's default initialisation.

    The key ``lora``, which diffusers does not know, holds the fields of LoRA: the network then has adapters.

    Raises:
        ConfigError: if ``_class_name`` is not one of MODEL_CLASSES or diffusers refuses the configuration.
    """
    name = config.get("_class_name")
    if name not in MODEL_CLASSES:
        raise ConfigError(f"model._class_name {name!r} is not allowed; allowed: {', '.join(MODEL_CLASSES)}")
    plain = {key: value for key, value in config.items() if key != LORA}
    model = _from_config(getattr(diffusers, name), plain, "model")
    return adapt(model, _lora(config[LORA])) if LORA in config else model


def _lora(fields: Any) -> LoRA:
    try:
        return LoRA.model_validate(fields)
    except ValidationError as error:
        first = first_error(error)
        raise ConfigError(f"model.{dotted((LORA, *first['loc']))} = {first['input']!r}: {first['msg']}") from error


def build_scheduler(config: Mapping[str, Any]) -> DDPMScheduler:
    """Build the DDPM noise schedule that ``config`` describes.

    Raises:
        ConfigError: if ``_class_name`` is there and is not DDPMScheduler, the prediction type is unknown, diffusers
            refuses the configuration, or what it makes is no noise schedule.
    """
    name = config.get("_class_name", "DDPMScheduler")
    if name != "DDPMScheduler":
        raise ConfigError(f"scheduler._class_name {name!r} is not allowed; allowed: DDPMScheduler")
    scheduler = _from_config(DDPMScheduler, config, "scheduler")
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        allowed = ", ".join(PREDICTION_TYPES)
        raise ConfigError(f"prediction_type {scheduler.config.prediction_type!r} is unknown; allowed: {allowed}")
    steps, betas = scheduler.config.num_train_timesteps, scheduler.betas
    if len(betas) != steps or not steps:
        raise ConfigError(
            f"scheduler has {len(betas)} betas for num_train_timesteps = {steps}; allowed: as many, from 1"
        )
    if not bool(((betas >= 0) & (betas <= 1)).all()):  # NaN is not either
        least, largest = betas.aminmax()
        raise ConfigError(f"scheduler's betas go from {least:.3g} to {largest:.3g}; allowed: 0 to 1")
    return scheduler


def num_train_timesteps(config: Mapping[str, Any]) -> int:
    """T of the noise schedule that ``config`` describes; ConfigError as in ``build_scheduler``."""
    return _num_train_timesteps(json.dumps(dict(config)))


@cache
def _num_train_timesteps(config: str) -> int:
    return int(build_scheduler(json.loads(config)).config.num_train_timesteps)


def ddim_sampler(scheduler: DDPMScheduler, steps: int, *, clip: bool) -> DDIMScheduler:
    """The DDIM sampler (Song et al. 2020, arXiv 2010.02502, eq. 12 with sigma = 0) of a schedule, its timesteps set.

    It starts at the last timestep whose x_t and target determine the image (``determines_x0``). ``clip``: predicted
    images are clipped to [-1, 1] on the way.
    """
    sampler = DDIMScheduler(
        num_train_timesteps=scheduler.config.num_train_timesteps,
        trained_betas=scheduler.betas.tolist(),
        prediction_type=scheduler.config.prediction_type,
        clip_sample=clip,
        timestep_spacing="trailing",
    )
    sampler.set_timesteps(min(steps, scheduler.config.num_train_timesteps))
    sampler.timesteps = sampler.timesteps[determines_x0(scheduler, sampler.timesteps)]
    return sampler


def _from_config(cls: Any, config: Mapping[str, Any], what: str) -> Any:
    """``cls.from_config`` without its chatter; keys that start with ``_`` are diffusers' own book-keeping."""
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with _quiet_diffusers():
            built, unused = cls.from_config(public, return_unused_kwargs=True)
    except Exception as error:  # diffusers stumbles over wrong values in as many ways as there are
        raise ConfigError(f"{what} configuration cannot be built: {message(error)}") from error
    if unused:
        raise ConfigError(f"{what} configuration has unknown keys: {', '.join(sorted(unused))}")
    return built


@contextmanager
def _quiet_diffusers() -> Any:
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that receive gradients, by name, in the model's own order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trainable_names(config: Mapping[str, Any]) -> list[str]:
    """Names of the parameters that the model of ``config`` trains; it is not built in memory."""
    return list(trainable_parameters(outline(config)))


def outline(config: Mapping[str, Any]) -> nn.Module:
    """The network that ``config`` describes, on torch's meta device: names and shapes without numbers, to look at only.

    Raises:
        ConfigError: as ``build_model``.
    """
    return _outline(json.dumps(dict(config)))


@cache
def _outline(config: str) -> nn.Module:
    with torch.device("meta"):
        return build_model(json.loads(config))


def dropout_of(config: Mapping[str, Any]) -> float:
    """The probability with which the network of ``config`` drops an activation in training; 0 unless it says so."""
    return float(config.get("dropout") or 0.0)


def sample_size(config: Mapping[str, Any]) -> int | None:
    """The side of the square images that the network of ``config`` was made for; None where it does not say.

    Raises:
        ConfigError: if ``sample_size`` is no size, or that of images that are not square.
    """
    size = config.get("sample_size")
    if size is None:
        return None
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if not whole or len(sides) != 2 or sides[0] != sides[1]:
        raise ConfigError(
            f"model.sample_size = {size!r}; allowed: the side of a square in pixels, or a pair of equal sides"
        )
    return int(sides[0])


def check_network(model: Mapping[str, Any], scheduler: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
    """See that a network can be trained on images [C,H,W] by a noise schedule, in a trial without memory or time.

    Raises:
        ConfigError: if either cannot be built, or the network cannot be trained so; the line says why.
    """
    _check_network(json.dumps(dict(model)), num_train_timesteps(scheduler), tuple(image_shape))


@cache
def _check_network(config: str, timesteps: int, image_shape: tuple[int, ...]) -> None:
    network: Any = _outline(config)
    _check_inputs(network, timesteps, image_shape[0])
    try:
        x_t = torch.empty(2, *image_shape, device="meta")
        prediction = predict(network, x_t, torch.zeros(2, dtype=torch.int64, device="meta"))
        torch.autograd.grad(prediction.sum(), list(trainable_parameters(network).values()))
        reason = f"it predicts {list(prediction.shape[1:])}" if prediction.shape != x_t.shape else None
    except Exception as error:  # the network is diffusers' own, and so are its ways to fail
        reason = message(error)
    if reason is None:
        return
    levels, (height, width) = len(network.config.block_out_channels), image_shape[1:]
    multiple = 2 ** (levels - 1)
    if height % multiple or width % multiple:
        raise ConfigError(
            f"images of {height}x{width} pixels do not go through a network of {levels} levels; "
            f"allowed: sides that are multiples of {multiple}, or fewer levels (block_out_channels)"
        )
    raise ConfigError(f"the network cannot be trained on images of shape {list(image_shape)}: {reason}")


def _check_inputs(network: Any, timesteps: int, channels: int) -> None:
    facts = network.config
    if network.class_embedding is not None:
        key = "num_class_embeds" if facts.class_embed_type is None else "class_embed_type"
        raise ConfigError(
            f"the network takes class labels ({key} = {facts[key]!r}), which neither clients nor attacks can give yet; "
            "allowed: a network without"
        )
    if facts.out_channels == 2 * facts.in_channels:
        raise ConfigError(
            f"the network predicts a variance beside the noise (out_channels = {facts.out_channels}, in_channels = "
            f"{facts.in_channels}), which the loss does not train; allowed: out_channels = {facts.in_channels}"
        )
    if not facts.in_channels == facts.out_channels == channels:
        raise ConfigError(
            f"the network takes images of {facts.in_channels} channels and predicts {facts.out_channels}, the images "
            f"have {channels}; allowed: in_channels = out_channels = {channels}"
        )
    embedded = getattr(network.time_proj, "num_embeddings", timesteps)
    if embedded < timesteps:
        raise ConfigError(
            f"the network's learned embedding knows {embedded} timesteps, the noise schedule has {timesteps}; "
            f"allowed: model.num_train_timesteps = {timesteps}"
        )


def misfit(tensors: Mapping[str, Tensor], model: nn.Module, required: Iterable[str], where: str = "") -> str | None:
    """Why tensors are no part of the state of ``model``, or lack what is ``required``, in one line; else None.

    Tensors are called ``where`` and their name.
    """
    own = {name: value.shape for name, value in model.state_dict().items()}
    for name, value in tensors.items():
        if name not in own:
            return f"{where}{name} is no parameter of the model{_naming(tensors, own)}"
        if value.shape != own[name]:
            return f"{where}{name} has shape {list(value.shape)}, the model has {list(own[name])}"
    missing = [name for name in required if name not in tensors]
    return f"{where}{missing[0]} is missing" if missing else None


def _naming(came: Iterable[str], own: Iterable[str]) -> str:
    """Which names came and which are the model's; and where all have one prefix too many, which."""
    came, own = list(came), list(own)
    prefixes = {name.removesuffix(known) for name in came for known in own if name.endswith(f".{known}")}
    shortest = min(prefixes, key=len, default="")
    prefixed = bool(shortest) and all(name.startswith(shortest) for name in came)
    without = f", without {shortest!r} in front" if prefixed else ""
    return f"; came: {_some(came)}; the model's: {_some(own)}; allowed: the network's own state_dict() names{without}"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(islice(names, 3))}, … ({len(names)})" if len(names) > 3 else ", ".join(names)


@dataclass(frozen=True)
class Checkpoint:
    """A model: its weights by name, its configuration, its noise schedule, and notes such as ``photographs``.

    ``dtype``: in which types a file holds the weights; here they are float32.
    """

    weights: dict[str, Tensor]
    model: dict[str, Any]
    scheduler: dict[str, Any]
    notes: dict[str, Any]
    dtype: str = "float32"

    @property
    def image_size(self) -> int | None:
        """The side of the square images that the model takes; None if it does not say."""
        return sample_size(self.model)


CHECKPOINT = "checkpoint"
"""Metadata key of a checkpoint file."""


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint file (experiments/checkpoint.py), its floating-point weights converted to float32.

    Raises:
        ConfigError: if it cannot be read, is no checkpoint, or does not fit itself.
    """
    tensors, metadata = read_safetensors(path)
    facts = _checkpoint_facts(metadata)
    schedule = build_scheduler(facts["scheduler"]).config
    settled = {"num_train_timesteps": schedule.num_train_timesteps, "prediction_type": schedule.prediction_type}
    weights = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    network = outline(facts["model"])
    sample_size(facts["model"])
    if reason := misfit(weights, network, network.state_dict()):
        raise ConfigError(reason)
    for name, value in weights.items():
        if not value.is_floating_point():
            raise ConfigError(f"{name} is {_type(value)}; allowed: floating-point weights")
        if not value.isfinite().all():
            raise ConfigError(f"{name} holds NaN, infinite values, or such as leave the range of float32")
    types = ", ".join(sorted({_type(value) for value in tensors.values()}))
    model, scheduler = facts.pop("model"), facts.pop("scheduler") | settled
    return Checkpoint(weights, model, scheduler, facts, types)


def _checkpoint_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    if CHECKPOINT not in metadata:
        other = "it is a capture" if "observation" in metadata else "weights that diffusers saved cannot be read yet"
        raise ConfigError(
            f"its metadata has no {CHECKPOINT!r}, the configuration of network and noise schedule; {other}"
        )
    try:
        facts = json.loads(metadata[CHECKPOINT])
    except json.JSONDecodeError as error:
        raise ConfigError(f"its metadata {CHECKPOINT!r} is not JSON: {error}") from error
    for key in ("model", "scheduler"):
        if not isinstance(facts, dict) or not isinstance(facts.get(key), dict):
            raise ConfigError(
                f"its metadata {CHECKPOINT!r} has no table {key!r}, the configuration as diffusers has it"
            )
    return dict(facts)


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata; nothing is ever unpickled.

    Raises:
        ConfigError: if it is no whole safetensors file; the line, which does not name the file, says what it is.
    """
    if reason := _no_file(path):
        raise ConfigError(f"{reason}; allowed: a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(_why_unreadable(path, error)) from error


def _no_file(path: Path) -> str | None:
    """What there is in place of a regular file; a named pipe, for one, would be waited for."""
    try:
        if path.is_dir():
            of_diffusers = any((path / name).exists() for name in ("config.json", "model_index.json"))
            return f"it is a folder{' of diffusers, which cannot be read yet' if of_diffusers else ''}"
        if not path.exists():
            return "there is no such file"
        return None if path.is_file() else "it is no regular file"
    except OSError as error:
        return f"it cannot be looked at: {error.strerror}"


_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_ZIP = b"PK\x03\x04"
"""First bytes of what torch.save writes."""


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
    except OSError as denied:
        return f"it cannot be read: {denied.strerror}"
    if not start:
        return "it is empty; allowed: a safetensors file"
    if path.suffix in _PICKLES or start == _ZIP:
        return "it is a pickle, which is never opened; allowed: a safetensors file"
    return f"it is no whole safetensors file: {message(error)}"


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _interpolate(table: Tensor, position: Tensor) -> Tensor:
    below = position.detach().floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (position - below).to(table.dtype))


def signal_and_noise_scale(scheduler: DDPMScheduler, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alphas_cumprod[t]) and sqrt(1 - alphas_cumprod[t]), each [B,1,1,1], typed and placed as ``like``.

    Between two integers alphas_cumprod is taken to be linear, so that a search may relax t to a real number in 0..T-1.
    """
    table = scheduler.alphas_cumprod.to(device=like.device, dtype=torch.float64)
    alphas_cumprod = _interpolate(table, timesteps) if timesteps.is_floating_point() else table[timesteps]
    signal, noise = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
    return _broadcast(signal, like).to(like.dtype), _broadcast(noise, like).to(like.dtype)


def add_noise(scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = sqrt(alphas_cumprod) x0 + sqrt(1 - alphas_cumprod) noise (arXiv 2006.11239, eq. 4); all [B,C,H,W]."""
    signal_scale, noise_scale = signal_and_noise_scale(scheduler, timesteps, x0)
    return signal_scale * x0 + noise_scale * noise


def determines_x0(scheduler: DDPMScheduler, timesteps: Tensor) -> Tensor:
    """Whether x_t and the target tell x0 at each of ``timesteps`` int64 [N]; bool [N], on the CPU.

    They do not where the signal-to-noise ratio is 0 and the target is the noise (Lin et al. 2023, arXiv 2305.08891).
    """
    signal = scheduler.alphas_cumprod[timesteps.cpu()] > 0
    return signal if scheduler.config.prediction_type == "epsilon" else torch.ones_like(signal)


def target(scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network is trained to predict, [B,C,H,W].

    ``epsilon``: the noise (arXiv 2006.11239, eq. 14); ``sample``: x0; ``v_prediction``: v = sqrt(alphas_cumprod) noise
    - sqrt(1 - alphas_cumprod) x0 (Salimans and Ho 2022, arXiv 2202.00512, appendix D).
    """
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    signal_scale, noise_scale = signal_and_noise_scale(scheduler, timesteps, x0)
    return signal_scale * noise - noise_scale * x0


def x0_from_residual(
    scheduler: DDPMScheduler, x_t: Tensor, prediction: Tensor, residual: Tensor, timesteps: Tensor
) -> Tensor:
    """The image whose noised version is ``x_t`` and whose target is ``prediction - residual``; all [B,C,H,W].

    Inverts ``add_noise`` and ``target`` together: the target of the loss is prediction minus residual by definition,
    and target and x_t determine x0. Where they do not (``determines_x0``) the image is 0, a plain grey.
    """
    known_target = prediction - residual
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "sample":
        return known_target
    signal_scale, noise_scale = signal_and_noise_scale(scheduler, timesteps, x_t)
    if prediction_type == "epsilon":
        visible = signal_scale > 0
        return torch.where(visible, (x_t - noise_scale * known_target) / torch.where(visible, signal_scale, 1.0), 0.0)
    return signal_scale * x_t - noise_scale * known_target


def noise_from_target(scheduler: DDPMScheduler, x_t: Tensor, known_target: Tensor, timesteps: Tensor) -> Tensor:
    """The noise in ``x_t`` [B,C,H,W] if the network should have predicted ``known_target``; affine in the latter.

    Of sample prediction it takes noise to be there: it divides by sqrt(1 - alphas_cumprod).
    """
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return known_target
    signal_scale, noise_scale = signal_and_noise_scale(scheduler, timesteps, x_t)
    if prediction_type == "sample":
        return (x_t - signal_scale * known_target) / noise_scale
    return noise_scale * x_t + signal_scale * known_target


def predict(model: nn.Module, x_t: Tensor, timesteps: Tensor) -> Tensor:
    """The network's output for noisy images ``x_t`` [B,C,H,W] at ``timesteps`` [B]."""
    return model(x_t, timesteps, return_dict=False)[0]


def loss(model: nn.Module, scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Mean squared error over batch and pixels between prediction and target (arXiv 2006.11239, eq. 14); a scalar."""
    x_t = add_noise(scheduler, x0, noise, timesteps)
    return nn.functional.mse_loss(predict(model, x_t, timesteps), target(scheduler, x0, noise, timesteps))


def gradient(
    model: nn.Module, scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, timesteps: Tensor
) -> dict[str, Tensor]:
    """The gradient of ``loss`` by trainable parameter's name; the model's ``.grad`` is untouched."""
    return gradient_and_loss(model, scheduler, x0, noise, timesteps)[0]


def gradient_and_loss(
    model: nn.Module, scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, timesteps: Tensor
) -> tuple[dict[str, Tensor], float]:
    """``gradient``, and the loss itself."""
    parameters = trainable_parameters(model)
    value = loss(model, scheduler, x0, noise, timesteps)
    gradients = torch.autograd.grad(value, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True)), value.item()


def count_parameters(parameters: Iterable[Tensor]) -> int:
    """Number of scalars in all of ``parameters`` together."""
    return sum(parameter.numel() for parameter in parameters)
