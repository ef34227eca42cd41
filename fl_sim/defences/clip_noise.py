"""Clipping and Gaussian noise on the update (Geyer et al. 2017, arXiv 1712.07557, with the noise added by clients)."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from typing_extensions import override

from fl_sim.defences.defence import Update, UpdateDefence
from fl_sim.defences.privacy import Privacy, gaussian_privacy
from fl_sim.wire import Recipe


class ClipNoise(UpdateDefence):
    """The update, scaled down to a largest L2 norm, with Gaussian noise on every entry.

        update * min(1, clip_norm / ||update||) + noise_multiplier * clip_norm * N(0, I)

    The privacy spent is towards the server, which sees each client's update. For any two sets of images the clipped
    updates differ by at most 2 ``clip_norm``. Sampling of clients adds no privacy, because the server does it.
    """

    name: ClassVar[str] = "clip-noise"

    clip_norm: float = Field(1.0, gt=0, description="largest L2 norm of the update, over all of it")
    noise_multiplier: float = Field(
        0.1, ge=0, description="standard deviation of the noise over clip_norm; 0 clips only"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="of the (epsilon, delta) in the table of rounds")

    @override
    def protect(self, update: Update, generator: torch.Generator) -> Update:
        norm = float(torch.stack([value.double().square().sum() for value in update.values()]).sum().sqrt())
        factor = min(1.0, self.clip_norm / norm) if norm else 1.0
        std = self.noise_multiplier * self.clip_norm
        return {
            name: value * factor + std * torch.randn(value.shape, generator=generator) for name, value in update.items()
        }

    @override
    def disclosure(self, recipe: Recipe) -> dict[str, Any]:
        return {"clip_norm": self.clip_norm, "noise_std": self.noise_multiplier * self.clip_norm}

    @override
    def privacy(self, recipe: Recipe, images: int, rounds: int) -> Privacy:
        return gaussian_privacy(self.noise_multiplier / 2, rounds, self.delta)
