"""A classifier trained by a federation in which every client holds all images of one class, and no others."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fl_sim.classification import ClassificationTask
from fl_sim.client_app import local_training
from fl_sim.draws import Draw, derive_seed, draw_image_indices
from fl_sim.network import build_model
from fl_sim.network.local_optimizer import LocalOptimizer
from fl_sim.wire import Recipe

BATCH_SIZE = 16
LOCAL_STEPS = 5
"""Few: each client pulls towards its own class, and many steps would pull the clients apart."""
LEARNING_RATE = 0.05


def train_one_class_each(
    config: Mapping[str, Any], images: Tensor, labels: Tensor, rounds: int, seed: int
) -> nn.Module:
    """The global classifier of ``config`` after so many rounds of FedAvg; client c holds the images of class c.

    Every client takes part in every round and trains as in a run. Images are [N,C,H,W] in [-1, 1], labels int64 [N].
    The classifier is frozen and in evaluation mode. The same arguments give the same weights on a CPU.
    """
    recipe = Recipe(
        model=dict(config),
        task=ClassificationTask(num_classes=config["num_classes"]),
        image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        update="weights",
        batch_size=BATCH_SIZE,
        local_steps=LOCAL_STEPS,
        optimizer=LocalOptimizer(name="sgd", lr=LEARNING_RATE),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        model = build_model(config)
    held = [(labels == c).nonzero()[:, 0] for c in range(config["num_classes"])]
    shares = torch.tensor([len(indices) for indices in held]) / len(labels)
    for server_round in range(1, rounds + 1):
        sent = {name: value.clone() for name, value in model.state_dict().items()}
        replies = []
        for client, indices in enumerate(held):
            order = draw_image_indices(
                derive_seed(seed, "images", client, server_round), BATCH_SIZE * LOCAL_STEPS, len(indices)
            )
            draw = Draw(images[indices[order]], labels=labels[indices[order]])
            replies.append(local_training(recipe, sent, draw, "cpu")[0])
        model.load_state_dict({name: _mean([reply[name] for reply in replies], shares) for name in sent})
    return model.eval().requires_grad_(False)


def _mean(values: list[Tensor], weights: Tensor) -> Tensor:
    return torch.tensordot(weights, torch.stack(values), dims=1)
