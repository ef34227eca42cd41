"""The search for the set of timesteps that explains the gradients of time layers best, and how clear its lead is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import torch

from attacks.timesteps.likelihood import Evidence, WhiteLayer, white_layers
from attacks.timesteps.time_layers import TimeLayer

_ABOVE_NOISE = 1.5
"""Singular values that exceed the largest to be expected of noise by this factor are signal."""
_PASSES = 10


@dataclass(frozen=True)
class Verdict:
    """A set of candidates' indices, ascending, and by how many standard deviations it is better than any other."""

    members: list[int]
    margin: float


def search(layers: Sequence[TimeLayer], samples: int, minimal_margin: float) -> Verdict:
    """The best set of at most ``samples`` members, each of them needed by ``minimal_margin``, as far as one is found.

    Two starts, both greedy: by the directions that stand out of the noise, all counted alike (rank-aware pursuit,
    Davies and Eldar 2012, arXiv 1004.4529: right at once where there are as many directions as members), and by the
    evidence.
    """
    evidence = Evidence(white_layers(layers, samples))
    complete = [layer.rows(layer.uncertainty.isfinite().all(dim=1)) for layer in layers]
    signals = Evidence([_directions(layer, samples) for layer in white_layers(complete, samples)])
    verdicts = []
    for start in (signals, evidence):
        if start.layers:
            verdicts.append(_settle(evidence, _greedy(start, samples), samples, minimal_margin))
            if verdicts[-1].margin >= minimal_margin:
                return verdicts[-1]
    return min(verdicts, key=lambda verdict: evidence.residual(verdict.members), default=Verdict([], 0.0))


def _directions(layer: WhiteLayer, samples: int) -> WhiteLayer:
    """A complete layer's leading right singular vectors as its values: those above the edge of the noise's own."""
    _, sizes, right = torch.linalg.svd(layer.values[0], full_matrices=False)
    edge = math.sqrt(layer.rows) + math.sqrt(layer.values.shape[2])
    rank = min(samples, max(int((sizes > _ABOVE_NOISE * edge).sum()), 1))
    return WhiteLayer(layer.inputs, layer.weights, right[None, :rank], rank)


def _greedy(evidence: Evidence, samples: int) -> list[int]:
    members: list[int] = []
    while len(members) < min(samples, evidence.candidates):
        members.append(int(evidence.gains(members).argmax()))
    return members


def _refine(evidence: Evidence, members: list[int]) -> list[int]:
    """Exchange members one by one for better ones until none is found."""
    for _ in range(_PASSES):
        before = list(members)
        for position in range(len(members)):
            others = members[:position] + members[position + 1 :]
            members[position] = int(evidence.gains(others).argmax())
        if members == before:
            break
    return members


def _settle(evidence: Evidence, members: list[int], samples: int, minimal_margin: float) -> Verdict:
    """Leave out members that are not needed and exchange pairs of neighbours, as long as that makes a better set.

    That no member is missing has to be as clear as the rest.
    """
    for _ in range(_PASSES):
        members = sorted(_refine(evidence, members))
        over_others, over_none = evidence.margins(members)
        margins = over_others + over_none
        if len(members) < samples:
            margins.append(evidence.completeness(members))
        needed = [member for member, margin in zip(members, over_none, strict=True) if margin >= minimal_margin]
        if 0 < len(needed) < len(members):
            members = needed
            continue
        if min(margins) < minimal_margin / 2 or len(members) == 1:
            return Verdict(members, min(margins))
        rivals = [evidence.rival_pair(members, *pair) for pair in pairwise(members)]
        rival, margin = min(rivals, key=itemgetter(1))
        if margin >= 0:
            return Verdict(members, min(*margins, margin))
        members = rival
    return Verdict(members, 0.0)
