"""The classifier that judges what a model inversion found. The attacker never has it, nor the images it learns from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attacks.model_inversion.augmentation import Augmentation
from fl_sim.draws import derive_seed, seeded_generator
from fl_sim.network import build_model

BATCH_SIZE = 64
PEAK_LEARNING_RATE = 3e-3
LABEL_SMOOTHING = 0.1
CHANGES = Augmentation(least_crop=0.7, rotation=10.0)
"""Random crops and rotations: there are few images, and each looks new every time. No mirroring: it changes digits."""


def evaluator_network(
    attacked: Mapping[str, Any], num_classes: int, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """The configuration of a classifier of images [C,H,W] that is not of the architecture of ``attacked``."""
    channels, *sides = image_shape
    shape = {"num_classes": num_classes, "image_size": sides, "in_channels": channels}
    if attacked.get("_class_name") == "ResNet":
        return {"_class_name": "ConvNet", **shape}
    return {"_class_name": "ResNet", "channels": [16, 32], **shape}


def train_evaluator(config: Mapping[str, Any], images: Tensor, labels: Tensor, steps: int, seed: int) -> nn.Module:
    """The classifier of ``config`` after so many steps of Adam on images [N,C,H,W] in [-1, 1], labels int64 [N].

    Images are changed at random, labels smoothed, and the learning rate rises and falls in one cycle. The classifier is
    frozen and in evaluation mode. The same arguments give the same weights on a CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        model = build_model(config)
    generator = seeded_generator(derive_seed(seed, "batches"))
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    loss = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
        optimizer.zero_grad()
        loss(model(CHANGES.apply(images[batch], generator)), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)
