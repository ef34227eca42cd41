"""Sign quantisation (signSGD, arXiv 1802.04434; scaled as in Karimireddy et al. 2019, arXiv 1901.09847)."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from typing_extensions import override

from fl_sim.config import Positive
from fl_sim.defences.defence import Update, UpdateDefence
from fl_sim.wire import Recipe


class Signs(UpdateDefence):
    """The sign of every entry, times one magnitude for each tensor.

    "mean" is the mean of |entry| over a tensor: of all multiples of the signs this one is nearest to the tensor, so
    learning rates keep their meaning. The server then knows that mean; with a fixed magnitude it knows signs alone.
    """

    name: ClassVar[str] = "signs"

    magnitude: Literal["mean"] | Positive = Field(
        "mean", description='"mean": of the magnitudes of each tensor\'s entries; or a number, for all tensors'
    )

    @override
    def protect(self, update: Update, generator: torch.Generator) -> Update:
        return {
            name: value.sign() * (value.abs().mean() if self.magnitude == "mean" else self.magnitude)
            for name, value in update.items()
        }

    @override
    def disclosure(self, recipe: Recipe) -> dict[str, Any]:
        return {"signs": True}
