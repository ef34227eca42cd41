"""The search for the most likely set of timesteps, and the margin of its lead."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import torch

from attacks.timesteps.likelihood import Evidence, NoiseScaledLayer, noise_scaled_layers
from attacks.timesteps.time_layers import TimeLayer

ABOVE_NOISE = 1.5
"""A singular value is signal above so many times the largest one to expect of noise."""
MOST_PASSES = 10
"""Passes over the members after which exchanging them ends."""


@dataclass(frozen=True)
class Verdict:
    """A set of candidates' indices, ascending, and its margin over any other set in standard deviations."""

    members: list[int]
    margin: float


def search_subset(layers: Sequence[TimeLayer], samples: int, minimal_margin: float) -> Verdict:
    """The most likely set of at most ``samples`` members, each of which leads by ``minimal_margin`` if possible.

    Two greedy starts. One counts all directions above the noise alike (rank-aware pursuit, Davies and Eldar 2012, arXiv
    1004.4529); it is right at once where there are as many directions as members. The other goes by the likelihood.
    """
    evidence = Evidence(noise_scaled_layers(layers, samples))
    complete = [layer.rows(layer.std.isfinite().all(dim=1)) for layer in layers]
    signals = Evidence([_directions(layer, samples) for layer in noise_scaled_layers(complete, samples)])
    verdicts = []
    for start in (signals, evidence):
        if start.layers:
            verdicts.append(_settle(evidence, _greedy(start, samples), samples, minimal_margin))
            if verdicts[-1].margin >= minimal_margin:
                return verdicts[-1]
    return min(verdicts, key=lambda verdict: evidence.remainder(verdict.members), default=Verdict([], 0.0))


def _directions(layer: NoiseScaledLayer, samples: int) -> NoiseScaledLayer:
    """The same layer with its leading right singular vectors as values: those above the largest of the noise."""
    _, sizes, right = torch.linalg.svd(layer.values[0], full_matrices=False)
    edge = math.sqrt(layer.rows) + math.sqrt(layer.values.shape[2])
    rank = min(samples, max(int((sizes > ABOVE_NOISE * edge).sum()), 1))
    return NoiseScaledLayer(layer.inputs, layer.weights, right[None, :rank], rank)


def _greedy(evidence: Evidence, samples: int) -> list[int]:
    members: list[int] = []
    while len(members) < min(samples, evidence.candidates):
        members.append(int(evidence.gains(members).argmax()))
    return members


def _refine(evidence: Evidence, members: list[int]) -> list[int]:
    """Exchange members one by one for better ones until none is found."""
    for _ in range(MOST_PASSES):
        before = list(members)
        for position in range(len(members)):
            others = members[:position] + members[position + 1 :]
            members[position] = int(evidence.gains(others).argmax())
        if members == before:
            break
    return members


def _settle(evidence: Evidence, members: list[int], samples: int, minimal_margin: float) -> Verdict:
    """Leave out unneeded members and exchange pairs of neighbours, as long as that makes a more likely set.

    The margin includes that no member is missing.
    """
    for _ in range(MOST_PASSES):
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
