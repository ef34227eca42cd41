"""The weight of every entry of an observed gradient when it is matched."""

from collections.abc import Mapping

import torch
from torch import Tensor

from attacks.inversion.gradient_matching import Distance, flatten, weighted_cosine_distance, weighted_squared_error
from attacks.inversion.problem import InversionProblem

SMALLEST_STD = 1e-6
"""Least standard deviation of an entry, relative to the gradient's root mean square. Some tensors have a gradient of
rounding errors alone (the bias of an attention layer's keys); without this floor they would outweigh all others."""

BALANCED_STD = 0.1
"""c of ``balanced_weights``: noise below this part of the gradient's root mean square counts less than balance."""


def matching_distance(problem: InversionProblem, layer_balance_power: float) -> Distance:
    """The weighted squared error, or the weighted cosine distance where the gradient's scale is unknown.

    Where signs alone were sent ``sign_distance`` takes its place.
    """
    weights = balanced_weights(problem.gradient, problem.std, layer_balance_power)
    return weighted_squared_error(weights) if problem.scale_known else weighted_cosine_distance(weights)


def balanced_weights(gradient: Mapping[str, Tensor], std: Mapping[str, Tensor], power: float) -> Tensor:
    """Inverse variances of the gradient's entries, balanced over the parameter tensors; w [P], sum_j w_j g*_j^2 = 1.

        1 / w_j = std_j^2 + (c R)^2 (rms_l / R)^power    for entry j of tensor l,

    with the root mean square rms_l of the tensor and R of the whole gradient, both without their noise. Where noise
    dominates this is maximum likelihood. For an exact gradient power 0 is the plain squared error; at power 2 all
    tensors count the same. A trained model has most of the gradient's energy in few tensors (the output convolution up
    to 70 %), and most of the information elsewhere: a plain squared error leaves it to the end of the search.

    Args:
        gradient: g* by parameter.
        std: standard deviation of every entry, by parameter; an entry of infinite deviation gets weight 0.
        power: 0..2.
    """
    values, deviations = flatten(list(gradient.values())), flatten(list(std.values()))
    known = deviations.isfinite()
    overall = _signal_rms(values[known], deviations[known])
    pieces = []
    for value, deviation in zip(gradient.values(), std.values(), strict=True):
        seen = deviation.isfinite()
        relative = _signal_rms(value[seen], deviation[seen]) / overall.clamp_min(torch.finfo(overall.dtype).tiny)
        variance = deviation.square() + (BALANCED_STD * overall) ** 2 * relative**power
        floor = (SMALLEST_STD * overall) ** 2
        pieces.append(torch.where(seen & (variance > 0), 1 / (variance + floor), 0.0).reshape(-1))
    weights = torch.cat(pieces)
    return weights / (weights * values.square()).sum()


def noise_floor(problem: InversionProblem, layer_balance_power: float) -> float:
    """sum_j w_j std_j^2, the matching loss that noise alone is expected to leave; 0 where the scale is unknown."""
    if not problem.scale_known:
        return 0.0
    weights = balanced_weights(problem.gradient, problem.std, layer_balance_power)
    deviations = flatten(list(problem.std.values()))
    return float((weights * torch.where(weights > 0, deviations, 0.0).square()).sum())


def _signal_rms(values: Tensor, deviations: Tensor) -> Tensor:
    """sqrt(mean(g*^2) - mean(std^2)), a scalar; 0 where that is negative."""
    if not values.numel():
        return values.new_zeros(())
    return (values.square().mean() - deviations.square().mean()).clamp_min(0).sqrt()
