"""Train a classifier on images with labels, in one place: what a benchmark attacks."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fl_sim import classification
from fl_sim.draws import derive_seed, seeded_generator
from fl_sim.network import build_model

BATCH_SIZE = 64
LEARNING_RATE = 1e-3


def train_classifier(config: Mapping[str, Any], images: Tensor, labels: Tensor, steps: int, seed: int) -> nn.Module:
    """The classifier of ``config`` after so many steps of Adam on images [N,C,H,W] in [-1, 1], labels int64 [N].

    It is frozen and in evaluation mode. The same arguments give the same weights on a CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        model = build_model(config)
    generator = seeded_generator(derive_seed(seed, "batches"))
    drawn = (torch.randint(len(images), (BATCH_SIZE,), generator=generator) for _ in range(steps))
    fit(model, ((images[batch], labels[batch]) for batch in drawn))
    return model.eval().requires_grad_(False)


def fit(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """One step of Adam on each of ``batches``, images [B,C,H,W] in [-1, 1] and labels int64 [B]; ``model`` changes."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for images, labels in batches:
        optimizer.zero_grad()
        classification.loss(model, images, labels).backward()
        optimizer.step()
