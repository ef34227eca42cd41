"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from fl_sim.errors import dotted, first_error
from fl_sim.network.configuration import ConfigError
from fl_sim.network.parameters import matching_names

LORA = "lora"
"""Key of a model's configuration, beside those of diffusers, that holds the fields of LoRA."""


class LoRA(BaseModel):
    """W' = W + alpha/rank B A (arXiv 2106.09685, section 4.1): W is frozen, B [out,rank] and A [rank,in] are trained.

    ``targets``: glob patterns of the names of linear and convolutional layers, such as ``*.to_q``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: int = Field(ge=1, le=1024, strict=True)
    alpha: int = Field(ge=1, le=2**31, strict=True)
    targets: tuple[str, ...] = Field(("*",), min_length=1, max_length=256)

    @classmethod
    def from_model_config(cls, fields: Any) -> "LoRA":
        """The adapters that a model's configuration describes under the key ``lora``.

        Raises:
            ConfigError: naming the key that is wrong, and its value.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = first_error(error)
            raise ConfigError(f"model.{dotted((LORA, *first['loc']))} = {first['input']!r}: {first['msg']}") from error


def adapt(model: nn.Module, lora: LoRA) -> nn.Module:
    """``model`` with adapters in it and all else frozen. Its output is unchanged, because B starts at zero.

    A layer's own parameters are then called ``<layer>.base_layer.…``, its adapters ``<layer>.lora_A.default.weight``
    and ``<layer>.lora_B.default.weight``.

    Raises:
        ConfigError: if a target matches no such layer, or peft is not installed.
    """
    try:
        # Imported late: it brings in the whole of transformers.
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("LoRA needs peft, which is not installed: pip install 'fl-sim[lora]'") from error
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for target in lora.targets:
        if not matching_names(layers, [target]):
            raise ConfigError(f"LoRA target {target!r} matches no layer; linear and convolutional: {', '.join(layers)}")
    pattern = "|".join(re.escape(name) for name in matching_names(layers, lora.targets))
    return inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=pattern), model)
