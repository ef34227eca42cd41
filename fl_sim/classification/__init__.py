"""The classifier: networks, training loss, features.

Honest clients and attacks both build on this package. Batches of images are [B,C,H,W] in [-1, 1], labels int64 [B] in
0..K-1, logits [B,K].
"""

from fl_sim.classification.classification_task import ClassificationTask
from fl_sim.classification.network import (
    accuracy,
    features,
    last_layer,
    logits_and_features,
    predict,
)
from fl_sim.classification.training_loss import gradient_and_loss, loss

__all__ = [
    "ClassificationTask",
    "accuracy",
    "features",
    "gradient_and_loss",
    "last_layer",
    "logits_and_features",
    "loss",
    "predict",
]
