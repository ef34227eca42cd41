"""Which user is it? What was found in every client's update, compared with the images of all clients.

A reconstruction that stands for a user should be nearer to that user's images than to those of the others. Distances
are taken in pixels and between the features of an evaluation classifier (experiments/evaluator.py), which the attacker
never sees. Chance is one over the number of users.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from experiments.metrics import psnr
from fl_sim import classification

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Users:
    """All clients: images float32 [N,C,H,W] in [0, 1] of each, and the class that the evaluator should name of each.

    ``evaluator`` is a frozen classifier of images [B,C,H,W] in [-1, 1].
    """

    images: Sequence[Tensor]
    classes: Sequence[int]
    evaluator: nn.Module

    @cached_property
    def means(self) -> Tensor:
        """The mean image of every user, [U,C,H,W]."""
        return torch.stack([images.mean(dim=0) for images in self.images])

    @cached_property
    def features(self) -> list[Tensor]:
        """The features of every user's images, float64 [N,F] each."""
        return [self.features_of(images) for images in self.images]

    @torch.no_grad()
    def features_of(self, images: Tensor) -> Tensor:
        """The evaluator's features float64 [N,F] of images [N,C,H,W] in [0, 1]."""
        return classification.features(self.evaluator, 2 * images - 1).double()

    @torch.no_grad()
    def judge(self, user: int, found: Tensor) -> dict[str, float | bool]:
        """What the images [K,C,H,W] in [0, 1] that were found in the update of ``user`` say of whose it is.

        Of several images the nearest one counts, for every user and figure.

        - ``by_features``, ``by_pixels``: whether this user's mean features, or mean image, are nearest of all users'.
        - ``to_own_mean``, ``to_others_mean``: feature distance to the mean features of the user, and the median of the
          distances to those of the others.
        - ``to_own_nearest``, ``to_others_nearest``: the same to the nearest image of each user.
        - ``class_named``: whether the evaluator names the user's class, by the mean of its probabilities.
        - ``psnr``: in dB, against the user's mean image.
        """
        features = self.features_of(found)
        to_means = _nearest(features, torch.stack([known.mean(dim=0) for known in self.features]))
        to_images = torch.stack([torch.cdist(features, known).min() for known in self.features])
        to_pixels = _nearest(found.flatten(1).double(), self.means.flatten(1).double())
        probabilities = classification.predict(self.evaluator, 2 * found - 1).softmax(dim=1).mean(dim=0)
        return {
            "by_features": first(to_means, user),
            "by_pixels": first(to_pixels, user),
            "to_own_mean": to_means[user].item(),
            "to_others_mean": _of_others(to_means, user),
            "to_own_nearest": to_images[user].item(),
            "to_others_nearest": _of_others(to_images, user),
            "class_named": int(probabilities.argmax()) == self.classes[user],
            "psnr": psnr(found, self.means[user].expand_as(found)).max().item(),
        }


def first(distances: Tensor, user: int) -> bool:
    """Whether ``user`` is nearest of all by ``distances`` [U], and no other as near: a tie tells nobody apart.

    >>> first(torch.tensor([0.1, 0.2, 0.2]), 0), first(torch.tensor([0.1, 0.1, 0.2]), 0)
    (True, False)
    """
    return bool((distances <= distances[user]).sum() == 1)


def rate_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a rate (Wilson 1927), by which ``successes`` of ``trials`` is at least so much.

    >>> low, high = rate_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    interval = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def _nearest(found: Tensor, known: Tensor) -> Tensor:
    """The distance of each of ``known`` [U,F] to the nearest of ``found`` [K,F]; [U]."""
    return torch.cdist(found, known).min(dim=0).values


def _of_others(distances: Tensor, user: int) -> float:
    return torch.cat([distances[:user], distances[user + 1 :]]).median().item()
