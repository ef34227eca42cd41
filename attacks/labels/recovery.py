"""The labels behind a classifier's update: exact, or unknown.

One image gives its label away (iDLG, arXiv 2001.02610). Of a batch it is told how often each label occurs. Three ways,
from proof to estimate: least counts that add up to the number of images; labels that alone explain the gradient;
estimated counts that are next to whole numbers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import AttackError
from attacks.inversion.problem import InversionProblem
from attacks.labels.feature_fit import fit_labels
from attacks.labels.last_layer import LastLayer, last_layer_of
from attacks.labels.least_counts import least_counts
from attacks.labels.soft_counts import round_counts, soft_counts

MINIMAL_MARGIN = 5.0
"""Margin in standard deviations below which labels are reported as unknown."""


class HiddenLabelsError(AttackError):
    """Labels that cannot be read off an update."""


@dataclass(frozen=True)
class RecoveredLabels:
    """What an update says of its labels.

    Attributes:
        labels: int64 [N], ascending; all -1 unless all are known, with how often each occurs.
        distinct: int64 [M], ascending: labels that certainly occur, each once; there may be more.
        margin: standard deviations by which ``labels`` are told from the next best; 0 where nothing was estimated.
    """

    labels: Tensor
    distinct: Tensor
    margin: float

    @property
    def known(self) -> bool:
        """Whether all N labels are known, with how often each occurs."""
        return bool((self.labels >= 0).all())


def recover_labels(problem: InversionProblem) -> RecoveredLabels:
    """Read the labels off the gradient of the problem's last linear layer."""
    layer = last_layer_of(problem)
    return _unknown(problem.samples) if layer is None else labels_behind(layer)


def labels_behind(layer: LastLayer) -> RecoveredLabels:
    """The labels that the last layer's gradient shows."""
    least = least_counts(layer, MINIMAL_MARGIN)
    proven, missing = least.counts > 0, layer.samples - int(least.counts.sum())
    if missing < 0:
        return _unknown(layer.samples)  # proofs contradict each other: noise that nobody was told of
    distinct = proven.nonzero().flatten()
    if missing == 0:
        return _all(least.counts, float(least.margins[proven].min()))
    if not (layer.complete and layer.counts and layer.bias_gradient.any()):
        return _unknown(layer.samples, distinct)
    likely, sensitivity = soft_counts(layer)
    if (fit := fit_labels(layer, least.counts, likely)) is not None and fit[1] >= MINIMAL_MARGIN:
        return _all(*fit)
    counts, margin = round_counts(likely, sensitivity)
    if margin >= MINIMAL_MARGIN and int(counts.sum()) == layer.samples and bool((counts >= least.counts).all()):
        return _all(counts, margin)
    return _unknown(layer.samples, distinct, min(margin, MINIMAL_MARGIN))


def _all(counts: Tensor, margin: float) -> RecoveredLabels:
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    return RecoveredLabels(labels, labels.unique(), margin)


def _unknown(samples: int, distinct: Tensor | None = None, margin: float = 0.0) -> RecoveredLabels:
    nothing = torch.full((samples,), -1)
    return RecoveredLabels(nothing, nothing[:0] if distinct is None else distinct, margin)


def labels_for_search(problem: InversionProblem) -> Tensor | None:
    """The labels int64 [N] that a search takes as given, on the problem's device: revealed, else recovered.

    None where training uses none. Recovered ones are ascending: which image has which is for the search to decide.

    Raises:
        HiddenLabelsError: if labels are private and cannot be read off.
    """
    if problem.num_classes is None or problem.labels is not None:
        return problem.labels
    recovered = recover_labels(problem)
    if not recovered.known:
        raise HiddenLabelsError(
            f"labels cannot be read off this update (margin {recovered.margin:.1f}, {MINIMAL_MARGIN:.0f} are needed; "
            f"{len(recovered.distinct)} of the {problem.samples} are certain)"
        )
    return recovered.labels.to(problem.device)
