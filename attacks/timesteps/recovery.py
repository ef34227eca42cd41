"""The timesteps behind an update, read off the gradients of the layers that see nothing but the timestep.

For N samples the weight gradient of such a layer is a sum of N rank-one terms,

    dW = sum_i s_i x(t_i)^T,

with inputs x(t) that the server knows (attacks/timesteps/time_layers.py). Its row space is spanned by the inputs at the
timesteps that were used. The same mechanism is known of the inputs of a linear layer with bias (Geiping et al. 2020,
arXiv 2003.14053, proposition 3.1), of span checks on language-model gradients (DAGER, arXiv 2405.15586) and of low-rank
gradients (SPEAR, arXiv 2403.03945). Here all layers count together, by likelihood (attacks/timesteps/likelihood.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import AttackError
from attacks.inversion.adam_steps import step_problems, tells_signs
from attacks.inversion.problem import InversionProblem
from attacks.timesteps.duplicates import plausible_timesteps
from attacks.timesteps.signs import judge_signs
from attacks.timesteps.subset_search import Verdict, search_subset
from attacks.timesteps.time_layers import TimeLayer, candidate_timesteps, time_layers

MINIMAL_MARGIN = 5.0
"""Margin in standard deviations below which timesteps are reported as unknown."""


class HiddenTimestepsError(AttackError):
    """Timesteps that cannot be read off an update."""


@dataclass(frozen=True)
class RecoveredTimesteps:
    """What an update says of its timesteps.

    Where two samples share a timestep the update shows which timesteps there are, but not which of them occurs twice:
    only the sum of the two samples' vectors shows (attacks/timesteps/duplicates.py ranks the possibilities).

    Attributes:
        timesteps: int64 [N], ascending, but those of Adam steps in the order of the steps; all -1 unless all are known,
            with how often each occurs.
        distinct: int64 [M], ascending, M <= N: every timestep once; empty where not even that is known.
        margin: standard deviations by which the set leads over the best rival, which has one member exchanged or left
            out. Below MINIMAL_MARGIN nothing is known. Of an exact gradient the deviation is that of rounding, and the
            margin is a ratio: the rival's distance from the gradient over the set's.
    """

    timesteps: Tensor
    distinct: Tensor
    margin: float

    @property
    def known(self) -> bool:
        """Whether all N timesteps are known, with how often each occurs."""
        return bool((self.timesteps >= 0).all())


def recover_timesteps(problem: InversionProblem) -> RecoveredTimesteps:
    """Read the timesteps off the problem's gradient.

    Fewer than N distinct ones are reported only where noise cannot hide a further sample. Two Adam steps fall apart
    into two problems of signs (attacks/inversion/adam_steps.py).
    """
    if tells_signs(problem.circumstances):
        return _of_steps([recover_timesteps(part) for part in step_problems(problem)])
    samples = problem.samples
    candidates = candidate_timesteps(problem)
    verdict = _verdict(problem, time_layers(problem, candidates))
    unknown = torch.full((samples,), -1)
    if verdict.margin < MINIMAL_MARGIN:
        return RecoveredTimesteps(unknown, unknown[:0], verdict.margin)
    distinct = candidates[verdict.members]
    timesteps = {samples: distinct, 1: distinct.repeat(samples)}.get(len(distinct), unknown)
    return RecoveredTimesteps(timesteps, distinct, verdict.margin)


def _of_steps(steps: list[RecoveredTimesteps]) -> RecoveredTimesteps:
    """What is known of all steps together: everything or nothing."""
    timesteps, margin = torch.cat([step.timesteps for step in steps]), min(step.margin for step in steps)
    if not all(step.known for step in steps):
        unknown = torch.full_like(timesteps, -1)
        return RecoveredTimesteps(unknown, unknown[:0], margin)
    return RecoveredTimesteps(timesteps, timesteps.unique(), margin)


def timestep_hypotheses(problem: InversionProblem) -> list[Tensor]:
    """The possible timesteps of the problem, each int64 [N] on its device; the most likely first.

    There is one hypothesis, unless a timestep was drawn more than once and the update does not show which.

    Raises:
        HiddenTimestepsError: if the timesteps cannot be read off.
    """
    recovered = recover_timesteps(problem)
    if not len(recovered.distinct):
        raise HiddenTimestepsError(f"timesteps cannot be read off this update (margin {recovered.margin:.1f})")
    if recovered.known:
        return [recovered.timesteps.to(problem.device)]
    return [answer.to(problem.device) for answer in plausible_timesteps(problem, recovered.distinct)]


def _verdict(problem: InversionProblem, layers: list[TimeLayer]) -> Verdict:
    unknown = Verdict([], 0.0)
    samples, optimizer = problem.samples, problem.circumstances.local_optimizer
    adam = optimizer is not None and optimizer.name != "sgd"
    if not layers or (adam and samples > problem.circumstances.batch_size):
        return unknown  # a sum of several of Adam's steps is not linear in gradients
    if problem.signs_only:
        return judge_signs(layers) if samples == 1 else unknown
    verdict = search_subset(layers, samples, MINIMAL_MARGIN)
    if adam and samples == 1 and verdict.margin < MINIMAL_MARGIN:
        return judge_signs(layers)  # all that is left of entries far above Adam's eps
    return verdict
