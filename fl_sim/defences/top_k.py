"""Sparsification: only the largest entries are sent (Deep Gradient Compression, arXiv 1712.01887, without feedback)."""

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from typing_extensions import override

from fl_sim.defences.defence import Update, UpdateDefence
from fl_sim.wire import Recipe


class TopK(UpdateDefence):
    """Only a fraction of the entries, the largest by magnitude over all of the update; the others are zero."""

    name: ClassVar[str] = "top-k"

    fraction: float = Field(0.1, gt=0, le=1, description="of the entries that is sent, rounded up")

    @override
    def protect(self, update: Update, generator: torch.Generator) -> Update:
        flat = torch.cat([value.flatten() for value in update.values()])
        largest = flat.abs().topk(math.ceil(self.fraction * len(flat))).indices
        kept = torch.zeros_like(flat).index_copy(0, largest, flat[largest])
        pieces = kept.split([value.numel() for value in update.values()])
        return {name: piece.view_as(value) for (name, value), piece in zip(update.items(), pieces, strict=True)}

    @override
    def disclosure(self, recipe: Recipe) -> dict[str, Any]:
        return {"sparsified": True}
