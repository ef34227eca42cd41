"""The timesteps behind an update, read off the gradients of the layers that see nothing but the timestep.

For N samples the weight gradient of such a layer is a sum of N rank-one terms,

    dW = sum_i s_i x(t_i)^T,

with inputs x(t) that the server knows (attacks/timesteps/time_layers.py). Its row space is spanned by the inputs at the
timesteps that were used. The same mechanism is known of the inputs of a linear layer with bias (Geiping et al. 2020,
arXiv 2003.14053, proposition 3.1), of span checks on language-model gradients (DAGER, arXiv 2405.15586) and of low-rank
gradients (SPEAR, arXiv 2403.03945). Here all layers count together, by likelihood (attacks/timesteps/likelihood.py).
In a class-conditional network timesteps and labels are told together (attacks/timesteps/labels.py).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.inversion.adam_steps import step_problems, tells_signs
from attacks.inversion.problem import InversionProblem
from attacks.timesteps.conditions import Conditions, HiddenTimestepsError, all_pairs
from attacks.timesteps.duplicates import plausible_timesteps
from attacks.timesteps.labels import USUAL, LabelRules, candidate_labels, label_layers, pairings, recover_labels
from attacks.timesteps.signs import judge_signs
from attacks.timesteps.subset_search import Verdict, search_subset
from attacks.timesteps.time_layers import TimeLayer, candidate_timesteps, time_layers

MINIMAL_MARGIN = 5.0
"""Margin in standard deviations below which timesteps are reported as unknown."""


@dataclass(frozen=True)
class RecoveredTimesteps:
    """What an update says of its timesteps.

    Where two samples share a timestep the update shows which timesteps there are, but not which of them occurs twice:
    only the sum of the two samples' vectors shows (attacks/timesteps/duplicates.py ranks the possibilities).

    Attributes:
        timesteps: int64 [N], ascending, but those of Adam steps in the order of the steps; all -1 unless all are known,
            with how often each occurs.
        distinct: int64 [M], ascending, M <= N: every timestep once; empty where not even that is known.
        labels: int64 [N], the label of each of ``timesteps``, likewise; None where the network takes none or the update
            does not show which label belongs to which timestep. With labels ``timesteps`` is ordered by label first.
        distinct_labels: int64 [M], the label of each of ``distinct``; a pair of timestep and label is there once.
        margin: standard deviations by which the set leads over the best rival, which has one member exchanged or left
            out. Below MINIMAL_MARGIN nothing is known. Of an exact gradient the deviation is that of rounding, and the
            margin is a ratio: the rival's distance from the gradient over the set's.
    """

    timesteps: Tensor
    distinct: Tensor
    margin: float
    labels: Tensor | None = None
    distinct_labels: Tensor | None = None

    @property
    def known(self) -> bool:
        """Whether all N timesteps are known, with how often each occurs."""
        return bool((self.timesteps >= 0).all())


def recover_timesteps(problem: InversionProblem, rules: LabelRules = USUAL) -> RecoveredTimesteps:
    """Read the timesteps off the problem's gradient, with the labels, by ``rules``, where the network takes them.

    Fewer than N distinct ones are reported only where noise cannot hide a further sample. The layers that see the
    timestep alone come first; where they show which timesteps there are, only these are tried in pairs with labels. Two
    Adam steps fall apart into two problems of signs (attacks/inversion/adam_steps.py).
    """
    if tells_signs(problem.circumstances):
        return _of_steps([recover_timesteps(part, rules) for part in step_problems(problem)])
    possible = candidate_timesteps(problem)
    alone = _recover(problem, Conditions(possible))
    labels = candidate_labels(problem, rules) if problem.circumstances.local_steps == 1 else None
    if labels is None:
        return alone
    if not len(alone.distinct):
        return _recover(problem, all_pairs(possible, labels))
    paired = _recover(problem, all_pairs(alone.distinct, labels))
    return replace(paired, margin=min(alone.margin, paired.margin)) if len(paired.distinct) else alone


def _recover(problem: InversionProblem, candidates: Conditions) -> RecoveredTimesteps:
    """The conditions among the candidates that explain the gradient."""
    samples = problem.samples
    layers = [*label_layers(problem, candidates.labels), *time_layers(problem, *candidates)]
    verdict = _verdict(problem, layers)
    unknown = torch.full((samples,), -1)
    if verdict.margin < MINIMAL_MARGIN:
        return RecoveredTimesteps(unknown, unknown[:0], verdict.margin)
    distinct = candidates.at(verdict.members)
    told = {samples: verdict.members, 1: verdict.members * samples}.get(len(verdict.members))
    unsure = Conditions(unknown, None if candidates.labels is None else unknown)
    known = unsure if told is None else candidates.at(told)
    return RecoveredTimesteps(known.timesteps, distinct.timesteps, verdict.margin, known.labels, distinct.labels)


def _of_steps(steps: list[RecoveredTimesteps]) -> RecoveredTimesteps:
    """What is known of all steps together: everything or nothing."""
    timesteps, margin = torch.cat([step.timesteps for step in steps]), min(step.margin for step in steps)
    if not all(step.known for step in steps):
        unknown = torch.full_like(timesteps, -1)
        return RecoveredTimesteps(unknown, unknown[:0], margin)
    return RecoveredTimesteps(timesteps, timesteps.unique(), margin)


def timestep_hypotheses(problem: InversionProblem, rules: LabelRules = USUAL) -> list[Conditions]:
    """The possible timesteps and labels of the problem, on its device; the most likely first.

    There is one hypothesis, unless a timestep, or pair of timestep and label, was drawn more than once and the update
    does not show which, or local steps hide which timestep a label belongs to.

    Raises:
        HiddenTimestepsError: if the timesteps or labels cannot be read off.
    """
    recovered = recover_timesteps(problem, rules)
    if not len(recovered.distinct):
        raise HiddenTimestepsError(f"timesteps cannot be read off this update (margin {recovered.margin:.1f})")
    paired = problem.num_classes is None or recovered.labels is not None
    unpaired = None if paired else recover_labels(problem, rules)
    if recovered.known:
        answers = [Conditions(recovered.timesteps, recovered.labels)]
    else:
        labels = recovered.distinct_labels if unpaired is None else unpaired[:1].expand_as(recovered.distinct)
        answers = plausible_timesteps(problem, Conditions(recovered.distinct, labels))
    if unpaired is not None:
        answers = [pair for answer in answers for pair in pairings(problem, answer.timesteps, unpaired, rules)]
    return [answer.to(problem.device) for answer in answers]


def _verdict(problem: InversionProblem, layers: list[TimeLayer]) -> Verdict:
    unknown = Verdict([], 0.0)
    samples, optimizer = problem.samples, problem.circumstances.local_optimizer
    adam = optimizer is not None and optimizer.adaptive
    if not layers or (adam and samples > problem.circumstances.batch_size):
        return unknown  # a sum of several of Adam's steps is not linear in gradients
    if problem.signs_only:
        return judge_signs(layers) if samples == 1 else unknown
    verdict = search_subset(layers, samples, MINIMAL_MARGIN)
    if adam and samples == 1 and verdict.margin < MINIMAL_MARGIN:
        return judge_signs(layers)  # all that is left of entries far above Adam's eps
    return verdict
