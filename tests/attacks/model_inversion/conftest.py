"""A tiny classifier, public images, and Diff-MI at a size at which every stage takes a moment."""

from typing import Any

import pytest
import torch

from attacks.model_inversion.diff_mi import DiffMI
from attacks.model_inversion.target import Target, TrainedClassifier
from fl_sim.network import build_model

CONFIG = {"_class_name": "ConvNet", "num_classes": 3, "image_size": [8, 8], "in_channels": 1, "channels": [4, 8]}
TINY: dict[str, Any] = {
    "images_per_class": 2,
    "pseudo_labels": 4,
    "training": {"steps": 3, "batch_size": 4, "block_out_channels": (8, 8), "norm_num_groups": 4},
    "fine_tuning": {"epochs": 2, "images_per_class": 1, "steps": 4, "accuracy": 1.0},
    "image_search": {"iterations": 3, "batch_size": 4, "final_steps": 3},
    "sampling_steps": 4,
}


def tiny_classifier(seed: int = 0) -> TrainedClassifier:
    torch.manual_seed(seed)
    return TrainedClassifier(CONFIG, build_model(CONFIG).state_dict())


def public_images(count: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def diff_mi(**arguments: Any) -> DiffMI:
    return DiffMI(**{**TINY, **arguments})


@pytest.fixture
def target() -> Target:
    return Target(tiny_classifier(), public_images(), seed=3)
