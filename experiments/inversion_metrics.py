"""How much the images of a model inversion look like the private images of their class.

All but PSNR use an evaluation classifier, which the attacker never sees. An image that fools only the attacked
classifier scores no better here. Feature vectors are the inputs of the evaluation classifier's last layer.

Accuracy and KNN distance are those of Zhang et al. 2020 (arXiv 1911.07135, section 4), the Frechet distance is that of
Heusel et al. 2017 (arXiv 1706.08500, section 4) with this classifier's features in the place of Inception's, coverage
and density those of Naeem et al. 2020 (arXiv 2002.09797, eq. 4 and 6).
"""

from typing import Any

import torch
from torch import Tensor, nn

from experiments.metrics import psnr
from fl_sim import classification

NEIGHBOURS = 3
"""k of coverage and density."""
BATCH = 256
"""Images that go through the evaluation classifier at once."""


@torch.no_grad()
def evaluate(
    images: Tensor, labels: Tensor, private: Tensor, private_labels: Tensor, target: nn.Module, evaluator: nn.Module
) -> dict[str, Any]:
    """All figures of images [N,C,H,W] that are meant to be of the classes ``labels`` int64 [N], as JSON has them.

    ``private`` [M,C,H,W] with classes int64 [M] are the images of which those classes were learnt; all images are in
    [0, 1]. ``knn_successes`` is None where the evaluator names no image's class.
    """
    logits, features = _logits_and_features(evaluator, images)
    _, known = _logits_and_features(evaluator, private)
    nearest = nearest_distances(features, labels, known, private_labels)
    named = logits.argmax(dim=1) == labels
    classes = labels.unique().tolist()
    pairs = [coverage_and_density(known[private_labels == c], features[labels == c]) for c in classes]
    return {
        "top1": classification.accuracy(logits, labels),
        "top5": among_largest(logits, labels, 5).float().mean().item(),
        "target_top1": classification.accuracy(classification.predict(target, 2 * images - 1), labels),
        "knn_all": nearest.mean().item(),
        "knn_successes": nearest[named].mean().item() if named.any() else None,
        "feature_frechet": frechet_distance(features, known[torch.isin(private_labels, labels)]),
        "coverage": sum(coverage for coverage, _ in pairs) / len(pairs),
        "density": sum(density for _, density in pairs) / len(pairs),
        "psnr": best_psnr(images, labels, private, private_labels).mean().item(),
    }


@torch.no_grad()
def image_figures(
    images: Tensor, labels: Tensor, private: Tensor, private_labels: Tensor, target: nn.Module, evaluator: nn.Module
) -> dict[str, Tensor]:
    """The figures that every single image has, each [N]; arguments as those of ``evaluate``.

    ``evaluator_top1`` and ``evaluator_top5`` say whether its class is among the evaluator's first. Where there is no
    private image of the class, ``knn_distance`` and ``psnr`` are NaN.
    """
    logits, features = _logits_and_features(evaluator, images)
    _, known = _logits_and_features(evaluator, private)
    probabilities = classification.predict(target, 2 * images - 1).softmax(dim=1)
    distances, there = nearest_distances(features, labels, known, private_labels), torch.isin(labels, private_labels)
    psnr_of_known = torch.full((len(images),), torch.nan, dtype=torch.double)
    psnr_of_known[there] = best_psnr(images[there], labels[there], private, private_labels)
    return {
        "evaluator_top1": among_largest(logits, labels, 1),
        "evaluator_top5": among_largest(logits, labels, 5),
        "target_probability": probabilities.gather(1, labels[:, None])[:, 0],
        "knn_distance": distances.masked_fill(~there, torch.nan),
        "psnr": psnr_of_known,
    }


def _logits_and_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Of images in [0, 1], some at a time."""
    parts = [classification.logits_and_features(model, 2 * batch - 1) for batch in images.split(BATCH)]
    logits, features = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(features)


def among_largest(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """For each row of ``logits`` [N,K] whether its label, int64 [N], is among the ``k`` largest; true where K <= k."""
    largest = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (largest == labels[:, None]).any(dim=1)


def nearest_distances(features: Tensor, labels: Tensor, private: Tensor, private_labels: Tensor) -> Tensor:
    """Squared L2 distance of each of ``features`` [N,F] to the nearest of its class in ``private`` [M,F]; [N].

    ``labels`` int64 [N], ``private_labels`` int64 [M]; every label is among the latter.
    """
    distances = torch.cdist(features.double(), private.double()).square()
    return distances.masked_fill(labels[:, None] != private_labels, torch.inf).amin(dim=1)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the means and covariances of two sets [N,F] and [M,F], N, M > 1.

    With A and B the centred sets over sqrt(N - 1) and sqrt(M - 1), the trace of the root is the sum of the singular
    values of A B^T.
    """
    sets = [features.double() for features in (first, second)]
    means = [features.mean(dim=0) for features in sets]
    a, b = ((x - mean) / (len(x) - 1) ** 0.5 for x, mean in zip(sets, means, strict=True))
    root = torch.linalg.svdvals(a @ b.T).sum()
    return ((means[0] - means[1]).square().sum() + a.square().sum() + b.square().sum() - 2 * root).item()


def coverage_and_density(private: Tensor, found: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Coverage and density of ``found`` [N,F] about ``private`` [M,F], M > k.

    Every private point has a ball that reaches to its ``k``-th nearest private neighbour. Coverage is the share of the
    balls that hold a found point; density is the mean number of balls that a found point is in, over ``k``.
    """
    private, found = private.double(), found.double()
    radii = torch.cdist(private, private).sort(dim=1).values[:, k]  # the first one is the point itself
    inside = torch.cdist(private, found) <= radii[:, None]
    return inside.any(dim=1).double().mean().item(), inside.double().sum().item() / (k * len(found))


def best_psnr(images: Tensor, labels: Tensor, private: Tensor, private_labels: Tensor) -> Tensor:
    """PSNR in dB of each image [N,C,H,W] against the private image of its class that is nearest in MSE; [N]."""
    best = []
    for image, label in zip(images, labels, strict=True):
        of_class = private[private_labels == label]
        best.append(psnr(image.expand_as(of_class), of_class).max())
    return torch.stack(best)
