"""Seeds and random draws: every random number of a run is a pure function of a root seed and a purpose.

A run has two roots, neither derived from the other: the public ``seed`` (initial weights, server sampling, attacks, and
the noise that a server dictates in the known threat model) and the private ``client.seed`` (partition, images, noise,
timesteps).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.diffusion.offset_noise import add_offset


class Draw(NamedTuple):
    """What a client trains on: N samples in the order in which its local steps use them up.

    Attributes:
        images: float32 [N,C,H,W] in [-1, 1].
        noise: [N,C,H,W]; None in classification.
        timesteps: int64 [N]; None in classification.
        labels: int64 [N], what training is told of the images' classes; None where it uses no labels.
    """

    images: Tensor
    noise: Tensor | None = None
    timesteps: Tensor | None = None
    labels: Tensor | None = None

    def to(self, device: str) -> "Draw":
        """The same on another device."""
        return Draw(*(None if value is None else value.to(device) for value in self))  # type: ignore[arg-type]

    def batches(self, size: int) -> Iterator["Draw"]:
        """The samples, ``size`` at a time."""
        for start in range(0, len(self.images), size):
            yield Draw(*(None if value is None else value[start : start + size] for value in self))  # type: ignore[arg-type]


def concatenate(parts: Iterable[Tensor | None]) -> Tensor | None:
    """What several clients have, one after the other; None if they have nothing of the kind."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def derive_seed(root: int, *purpose: str | int) -> int:
    """A seed in 0..2**63-1: the first 63 bits of SHA-256 over the JSON list [root, *purpose].

    The purpose says what is drawn, for which client and in which round:

    >>> derive_seed(0, "images", 3, 1)
    5485539793874582228
    >>> derive_seed(0, "images", 3, 2)
    7898650631627112398
    """
    digest = hashlib.sha256(json.dumps([root, *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded_generator(seed: int) -> torch.Generator:
    """A generator on the CPU, so that a draw is the same on whatever device the training runs."""
    return torch.Generator().manual_seed(seed)


def draw_noise_and_timesteps(
    seed: int, samples: int, image_shape: tuple[int, ...], num_train_timesteps: int, noise_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Noise ~ N(0, I) float32 [samples, *image_shape], timesteps uniform in 0..T-1 int64 [samples]; on the CPU.

    With ``noise_offset`` it is offset noise (fl_sim/diffusion/offset_noise.py), from the same normal draw.
    """
    generator = seeded_generator(seed)
    noise = torch.randn(samples, *image_shape, generator=generator)
    timesteps = torch.randint(num_train_timesteps, (samples,), generator=generator)
    return add_offset(noise, noise_offset, generator), timesteps


def draw_flips(seed: int, samples: int) -> Tensor:
    """Whether each image is mirrored, with probability 1/2; bool [samples]."""
    return torch.rand(samples, generator=seeded_generator(seed)) < 0.5


def drop_labels(labels: Tensor, seed: int, probability: float, null: int) -> Tensor:
    """``labels`` int64 [N] for classifier-free guidance: each is replaced by ``null`` with that probability.

    Source: Ho and Salimans 2022, arXiv 2207.12598, algorithm 1.
    """
    dropped = torch.rand(len(labels), generator=seeded_generator(seed)) < probability
    return torch.where(dropped, null, labels)


def draw_image_indices(seed: int, samples: int, population: int) -> Tensor:
    """Indices int64 [samples] into ``population`` images: without replacement until all were drawn, then anew.

    >>> draw_image_indices(seed=0, samples=5, population=3)
    tensor([2, 0, 1, 2, 1])
    """
    generator = seeded_generator(seed)
    passes = [torch.randperm(population, generator=generator) for _ in range(-(-samples // population))]
    return torch.cat(passes)[:samples]
