"""The optimiser of a client's local steps."""

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

Beta = Annotated[float, Field(ge=0, lt=1, strict=True)]


class LocalOptimizer(BaseModel):
    """The optimiser of a client's local steps; all fields but the last two mean what they mean in torch.optim.

    ``weight_decay`` is added to the gradient (L2), but for "adamw", which decays the weights themselves (arXiv
    1711.05101, algorithm 2).

    ``proximal_mu`` is the weight mu of FedProx's term mu/2 ||w - w_sent||^2 in the loss (arXiv 1812.06127, eq. 2).
    A step's gradient, that term included, is then scaled down to the norm ``max_grad_norm`` if it exceeds it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(gt=0, strict=True)
    momentum: float = Field(0.0, ge=0, lt=1, strict=True)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0, strict=True)
    weight_decay: float = Field(0.0, ge=0, strict=True)
    proximal_mu: float = Field(0.0, ge=0, strict=True)
    max_grad_norm: float | None = Field(None, gt=0, strict=True)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over ``parameters``."""
        if self.name == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)

    @property
    def adaptive(self) -> bool:
        """Whether it divides every entry by its own magnitude, as Adam and AdamW do."""
        return self.name != "sgd"
