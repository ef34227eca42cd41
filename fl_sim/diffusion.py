"""The denoising diffusion model: network, noise schedule, training loss and its targets.

Ground floor of the project: it imports no other room, and both the honest client and the attacks build on it.
Notation follows DDPM (Ho et al. 2020, arXiv 2006.11239): ``x0`` is an image in [-1, 1], ``noise`` is epsilon ~ N(0, I),
``timesteps`` are integers in 0..T-1, ``alphas_cumprod`` is the cumulative product of 1 - beta.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal

import diffusers
import torch
from diffusers import DDPMScheduler
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MODEL_CLASSES = ("UNet2DModel",)
LORA = "lora"
"""Key of a model's configuration, beside those of diffusers."""


class ConfigError(ValueError):
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
        first = error.errors()[0]
        key = ".".join(str(part) for part in (LORA, *first["loc"]))
        raise ConfigError(f"model.{key} = {first['input']!r}: {first['msg']}") from error


def build_scheduler(config: Mapping[str, Any]) -> DDPMScheduler:
    """Build the DDPM noise schedule that ``config`` describes.

    Raises:
        ConfigError: if ``_class_name`` is there and is not DDPMScheduler, the prediction type is unknown, or diffusers
            refuses the configuration.
    """
    name = config.get("_class_name", "DDPMScheduler")
    if name != "DDPMScheduler":
        raise ConfigError(f"scheduler._class_name {name!r} is not allowed; allowed: DDPMScheduler")
    scheduler = _from_config(DDPMScheduler, config, "scheduler")
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        allowed = ", ".join(PREDICTION_TYPES)
        raise ConfigError(f"prediction_type {scheduler.config.prediction_type!r} is unknown; allowed: {allowed}")
    return scheduler


def _from_config(cls: Any, config: Mapping[str, Any], what: str) -> Any:
    """``cls.from_config`` without its chatter; keys that start with ``_`` are diffusers' own book-keeping."""
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with _quiet_diffusers():
            built, unused = cls.from_config(public, return_unused_kwargs=True)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, LookupError, ArithmeticError) as error:
        raise ConfigError(f"{what} configuration cannot be built: {_one_line(error)}") from error
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that receive gradients, by name, in the model's own order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trainable_names(config: Mapping[str, Any]) -> list[str]:
    """Names of the parameters that the model of ``config`` trains; it is not built in memory."""
    return list(_trainable_names(json.dumps(dict(config))))


@cache
def _trainable_names(config: str) -> tuple[str, ...]:
    with torch.device("meta"):
        return tuple(trainable_parameters(build_model(json.loads(config))))


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
    and target and x_t determine x0.
    """
    known_target = prediction - residual
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "sample":
        return known_target
    signal_scale, noise_scale = signal_and_noise_scale(scheduler, timesteps, x_t)
    if prediction_type == "epsilon":
        return (x_t - noise_scale * known_target) / signal_scale
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
