"""How little the classifier takes an image for one of a class: the top-k max-margin loss and a feature regulariser.

As in the code of Diff-MI (arXiv 2407.11424; github.com/Ouxiang-Li/Diff-MI). With the logits o and the penultimate
features f of an image that is to be of class c:

    L_margin = - o_c + mean of the k largest o_j, j != c
    L_features = mean over the F features of (f - r_c)^2
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from attacks.model_inversion.arguments import Arguments
from attacks.model_inversion.target import Target
from fl_sim import classification


class MarginLoss(Arguments):
    """The numbers of the loss."""

    top_k: int = Field(20, ge=0, description="other classes that count, at most K - 1; 0: -o_c alone")
    feature_weight: float = Field(1.0, ge=0, description="weight of the feature regulariser")
    feature_images: int = Field(50, ge=1, description="public images of which the features' mean r_c is taken")

    def of(self, target: Target) -> "ClassLoss":
        """The loss by this classifier, with the regulariser's centres from its public images."""
        centres = feature_centres(target.public_logits, target.public_features, self.feature_images)
        return ClassLoss(target, centres, self.top_k, self.feature_weight)


@dataclass(frozen=True)
class ClassLoss:
    """L_margin + ``weight`` L_features by one classifier; ``centres`` are r_c for every class, [K,F]."""

    target: Target
    centres: Tensor
    top_k: int
    weight: float

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean over images [B,C,H,W] in [-1, 1] of the classes ``labels`` int64 [B]; a scalar, differentiable."""
        logits, features = classification.logits_and_features(self.target.classifier, images)
        margin = top_k_margin(logits, labels, self.top_k)
        return (margin + self.weight * (features - self.centres[labels]).square().mean(dim=1)).mean()


def top_k_margin(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """L_margin [B] of logits [B,K] and labels int64 [B]; with fewer other classes than ``k``, all of them count.

    >>> top_k_margin(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), torch.tensor([2]), k=2)
    tensor([1.5000])
    """
    own = logits.gather(1, labels[:, None])[:, 0]
    k = min(k, logits.shape[1] - 1)
    if k == 0:
        return -own
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.topk(k, dim=1).values.mean(dim=1) - own


def feature_centres(logits: Tensor, features: Tensor, count: int) -> Tensor:
    """r_c [K,F] for every class: the mean features of the ``count`` images with the largest logit of it.

    ``logits`` [M,K] and ``features`` [M,F] are those of public images. The authors' code reads r_c from a file. That it
    is made of the public images nearest to the class is the reading of LeakPro (github.com/aidotse/LeakPro), which
    draws r_c from their mean and spread; the mean is ours.
    """
    nearest = logits.sort(dim=0, descending=True, stable=True).indices[:count]
    return features[nearest].mean(dim=0)
