"""Quantisation with random rounding (QSGD, Alistarh et al. 2017, arXiv 1610.02132), tensor by tensor."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from fl_sim.defences.defence import Update, UpdateDefence
from fl_sim.wire import Recipe


class StochasticQuantisation(UpdateDefence):
    """Every entry rounded up or down at random to few levels, so that the expected value is the entry.

    The levels are the 2**bits - 1 multiples of s / L from -s to s, where s is the tensor's largest magnitude and
    L = 2**(bits - 1) - 1.
    """

    name: ClassVar[str] = "stochastic-quantisation"

    bits: int = Field(4, ge=2, le=16, description="of an entry, its sign included")

    @property
    def levels(self) -> int:
        """Levels above zero, L."""
        return 2 ** (self.bits - 1) - 1

    @override
    def protect(self, update: Update, generator: torch.Generator) -> Update:
        return {name: self._quantise(value, generator) for name, value in update.items()}

    def _quantise(self, value: Tensor, generator: torch.Generator) -> Tensor:
        step = value.abs().max() / self.levels
        if not step:
            return value
        chance = torch.rand(value.shape, generator=generator)
        return (value / step + chance).floor().clamp(-self.levels, self.levels) * step

    @override
    def disclosure(self, recipe: Recipe) -> dict[str, Any]:
        return {"quantisation_levels": self.levels}
