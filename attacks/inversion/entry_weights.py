"""How much every entry of an observed gradient counts when it is matched."""

from collections.abc import Mapping

import torch
from torch import Tensor

from attacks.inversion.gradient_matching import Distance, flatten, weighted_cosine_distance, weighted_squared_error
from attacks.inversion.problem import InversionProblem

ROUNDING = 1e-6
"""Smallest uncertainty of an entry, in parts of the gradient's root mean square. There are tensors whose gradient is
zero but for rounding (the bias of an attention layer's keys): they would weigh more than all others together."""

_EXACT = 0.1
"""How small noise has to be, in parts of the gradient's root mean square, before balance matters more than noise."""


def distance_for(problem: InversionProblem, balance: float) -> Distance:
    """The distance for what was revealed of the gradient: with its scale or without.

    Of signs there is ``sign_distance``.
    """
    weights = balanced_weights(problem.gradient, problem.uncertainty, balance)
    return weighted_squared_error(weights) if problem.scale_known else weighted_cosine_distance(weights)


def balanced_weights(gradient: Mapping[str, Tensor], uncertainty: Mapping[str, Tensor], power: float) -> Tensor:
    """Weights w [P], with sum_j w_j g*_j^2 = 1: inverse variances of the entries, balanced over the tensors.

    1 / w_j = sigma_j^2 + (c R)^2 (rms_l / R)^power for entry j of tensor l, with the entry's uncertainty sigma_j, the
    tensor's root mean square and that of the whole gradient, R. Where noise dominates this is maximum likelihood. In an
    exact gradient power 0 is the plain squared error, and 2 makes every scalar count the same relative to its tensor:
    a trained model has most of the gradient's energy in a few tensors (the output convolution up to 70 %), and a plain
    squared error leaves the rest, where most of the information is, to the very end of the search. Tensors without
    gradient and entries without finite uncertainty weigh nothing.
    """
    values, deviations = flatten(list(gradient.values())), flatten(list(uncertainty.values()))
    revealed = deviations.isfinite()
    overall = _signal(values[revealed], deviations[revealed])
    pieces = []
    for value, deviation in zip(gradient.values(), uncertainty.values(), strict=True):
        seen = deviation.isfinite()
        share = _signal(value[seen], deviation[seen]) / overall.clamp_min(torch.finfo(overall.dtype).tiny)
        variance = deviation.square() + (_EXACT * overall) ** 2 * share**power
        floor = (ROUNDING * overall) ** 2
        pieces.append(torch.where(seen & (variance > 0), 1 / (variance + floor), 0.0).reshape(-1))
    weights = torch.cat(pieces)
    return weights / (weights * values.square()).sum()


def noise_floor(problem: InversionProblem, balance: float) -> float:
    """The matching loss that the true unknowns are expected to have, from the noise that the server knows of."""
    if not problem.scale_known:
        return 0.0
    weights = balanced_weights(problem.gradient, problem.uncertainty, balance)
    deviations = flatten(list(problem.uncertainty.values()))
    return float((weights * torch.where(weights > 0, deviations, 0.0).square()).sum())


def _signal(values: Tensor, deviations: Tensor) -> Tensor:
    """Root mean square of what noise adds to; 0 where nothing is seen above it."""
    if not values.numel():
        return values.new_zeros(())
    return (values.square().mean() - deviations.square().mean()).clamp_min(0).sqrt()
