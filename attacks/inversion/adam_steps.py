"""The signs of two gradients, read off the sum of two Adam steps.

The first step is u_1 = sign(g_1), up to Adam's eps. The second (arXiv 1412.6980, algorithm 1, eps left out) is

    u_2 = (beta_1 g_1 + g_2) / (1 + beta_1) / sqrt((beta_2 g_1^2 + g_2^2) / (1 + beta_2)),

a function of g_2 / g_1 and of the sign of g_1 alone. Against u_1 it stays below 1, so that the sum has the sign of g_1.
And it exceeds its value at g_2 = 0 exactly where g_2 has the sign of g_1. So two steps show both gradients' signs, and
the first one's show the weights at which the second gradient was taken, theta_0 - lr sign(g_1). The update falls apart
into two problems of signs. The sum of three steps has no sign that one of them decides.
"""

import math
from copy import copy, deepcopy

import torch
from torch import Tensor

from attacks.inversion.budget import Budget
from attacks.inversion.problem import InversionProblem
from attacks.observation import Circumstances, DefenceDisclosure
from fl_sim import network

CLEAR_OF_NOISE = 3.0
"""Standard deviations of an entry within which it does not count as on either side of a threshold."""
FAR_BELOW = 0.5
"""Part of the least possible sum of two steps below which one of them was shortened by Adam's eps."""


def tells_signs(circumstances: Circumstances) -> bool:
    """Whether the update is that of two Adam or AdamW steps of one client, and shows the signs of both gradients.

    That takes two inequalities on beta_1 and beta_2, which usual ones fulfil. A defence that scales the update by an
    unknown factor hides at which size of the sum the second sign changes, and so does a moving average of the weights.
    Networks that take labels are left out.
    """
    optimizer, defence = circumstances.local_optimizer, circumstances.defence
    if circumstances.update == "gradient" or optimizer is None or not optimizer.adaptive:
        return False
    if circumstances.local_steps != 2 or circumstances.num_clients > 1 or circumstances.ema_decay is not None:
        return False
    if network.num_classes(circumstances.model) is not None:
        return False
    beta1, beta2 = optimizer.betas
    opposite_is_weaker, same_is_stronger = math.sqrt(1 + beta2) < 1 + beta1, beta1 <= math.sqrt(beta2)
    scaled = defence is not None and (defence.signs or defence.clip_norm is not None)
    return opposite_is_weaker and same_is_stronger and not scaled


def two_steps_signs(mean_step: Tensor, std: Tensor, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The signs of g_1 and g_2 from (u_1 + u_2) / 2 and its standard deviation; 0 where they cannot be told.

    That is where noise leaves them open, and where the sum is smaller than any gradients far above Adam's eps make it.
    """
    beta1, beta2 = betas
    without_second = (1 + beta1 / (1 + beta1) * math.sqrt((1 + beta2) / beta2)) / 2
    least = (1 - math.sqrt(1 + beta2) / (1 + beta1)) / 2
    size, noise = mean_step.abs(), CLEAR_OF_NOISE * std
    first = torch.where((size > noise) & (size > FAR_BELOW * least), mean_step.sign(), 0.0)
    beyond = size - without_second
    return first, torch.where(beyond.abs() > noise, first * beyond.sign(), 0.0)


def weights_before_steps(problem: InversionProblem, first_step: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """theta_0 and theta_1, each by parameter; theta_1 up to what Adam's eps takes off the first step.

    ``problem``: one whose circumstances ``tells_signs`` accepts; ``first_step``: its ``known_first_step``.
    """
    optimizer = problem.circumstances.local_optimizer
    assert optimizer is not None
    kept = 1.0 if optimizer.name == "adam" else 1 - optimizer.lr * optimizer.weight_decay
    sent = {name: parameter.detach() for name, parameter in problem.parameters.items()}
    return [sent, {name: value * kept - optimizer.lr * first_step[name] for name, value in sent.items()}]


def known_first_step(problem: InversionProblem) -> dict[str, Tensor]:
    """u_1 by parameter, sign(g_1), up to what Adam's eps takes off; 0 where noise leaves it open."""
    return _signs(problem)[0]


def step_problems(problem: InversionProblem) -> list[InversionProblem]:
    """The two problems of signs, in the order of the steps, each with its own model and an unlimited budget of its own.

    ``problem``: one whose circumstances ``tells_signs`` accepts.
    """
    signs = _signs(problem)
    each = zip(signs, weights_before_steps(problem, signs[0]), strict=True)
    return [_problem_of_step(problem, step, own, weights) for step, (own, weights) in enumerate(each)]


def _signs(problem: InversionProblem) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The signs of both gradients, each by parameter."""
    optimizer = problem.circumstances.local_optimizer
    assert optimizer is not None
    pairs = {n: two_steps_signs(step, problem.std[n], optimizer.betas) for n, step in problem.gradient.items()}
    return {name: first for name, (first, _) in pairs.items()}, {name: second for name, (_, second) in pairs.items()}


def _problem_of_step(
    problem: InversionProblem, step: int, signs: dict[str, Tensor], weights: dict[str, Tensor]
) -> InversionProblem:
    """The problem of one step's signs at the weights before it."""
    part, model = copy(problem), deepcopy(problem.model)
    samples = slice(step * problem.circumstances.batch_size, (step + 1) * problem.circumstances.batch_size)
    changes = {
        "update": "gradient",
        "local_steps": 1,
        "local_optimizer": None,
        "defence": DefenceDisclosure(signs=True),
    }
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(value)
    part.model, part.parameters = model, {name: named[name] for name in problem.parameters}
    part.circumstances = problem.circumstances.model_copy(update=changes)
    part.gradient, part.std = signs, {name: torch.zeros_like(sign) for name, sign in signs.items()}
    part.samples, part.scale_known = problem.circumstances.batch_size, False
    part.noise = None if problem.noise is None else problem.noise[samples]
    part.timesteps = None if problem.timesteps is None else problem.timesteps[samples]
    part.budget, part.trace = Budget(), None
    return part
