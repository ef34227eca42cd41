"""Train a classifier on images with labels, in one place: what a benchmark attacks, and what it judges by."""

from collections.abc import Mapping
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
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    generator = seeded_generator(derive_seed(seed, "batches"))
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
        optimizer.zero_grad()
        classification.loss(model, images[batch], labels[batch]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)
