"""Stage: several local steps, simulated from what was found for them as one batch.

Where timesteps were read off the update it does not say which step a sample belongs to. All ways to deal the samples to
the steps compete: by successive halving, and then in a race of the best few.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from attacks.inversion.budget import Budget
from attacks.inversion.gradient_matching import flatten
from attacks.inversion.problem import InversionProblem
from attacks.inversion.restarts import Patience, race, successive_halving
from attacks.residual.minimiser import Candidate
from attacks.residual.stage import Stage


class LocalTraining(Stage):
    """Simulates the client's local steps, over the most promising orders of the samples."""

    halving_evaluations: int = Field(15, ge=1, description="evaluations of every order in a round of halving")
    finalists: int = Field(3, ge=1, description="orders that race until one leads clearly; early losses mislead")
    most_orders: int = Field(120, ge=1, description="orders that are tried; of more, so many are drawn at random")
    dropout_ratio: float = Field(2.0, gt=1, description="an order drops out of the race at so many times the best loss")
    stall_ratio: float = Field(1.1, gt=1, description="the race ends when no loss falls by so much over two slices")
    patience: Patience = Field(Patience(), description="slices of the race")

    @override
    def run(self, candidate: Candidate, budget: Budget) -> Candidate:
        """The candidate of the best order of the samples, on the simulated matching loss."""
        minimiser, unknowns, problem = candidate.minimiser, candidate.unknowns, candidate.minimiser.problem
        in_order = samples_in_order(problem)
        orders: Sequence[Sequence[Tensor]] = [in_order]  # of a dictated draw
        simulated = minimiser.simulate(unknowns, in_order)
        if problem.noise is None:
            affordable = max(1, int(budget.left) // (2 * self.halving_evaluations))
            steps = problem.circumstances.local_steps
            orders = deal_samples(problem.samples, steps, minimiser.generator, self.most_orders, affordable)
        candidates = [
            Candidate(
                replace(minimiser, steps=steps),
                unknowns,
                simulated.with_steps(steps),
                unknowns.as_local_steps(candidate.point, steps),
            )
            for steps in orders
        ]
        finalists = successive_halving(candidates, self.halving_evaluations, self.finalists)
        winner = race(finalists, budget, self.stall_ratio, self.dropout_ratio, self.patience)
        winner.changes_metric = minimiser.metric is not None
        return winner


def explained_as_one_batch(candidate: Candidate, model_error_factor: float) -> bool:
    """Whether the loss of a candidate for one batch is below ``model_error_factor`` times what the batch neglects.

    A batch at the weights sent neglects that local steps move the weights. Less than that error cannot be told apart.
    """
    unknowns, in_order = candidate.unknowns, samples_in_order(candidate.minimiser.problem)
    as_steps = unknowns.as_local_steps(candidate.point, in_order)
    steps = candidate.minimiser.simulate(unknowns, in_order).gradient(
        [value.detach().requires_grad_() for value in as_steps]
    )
    batch = candidate.matching.gradient(candidate.point)
    neglected, _ = candidate.minimiser.distance(flatten(list(steps.values())), flatten(list(batch.values())))
    return candidate.loss < model_error_factor * float(neglected)


def samples_in_order(problem: InversionProblem) -> list[Tensor]:
    """The samples of every local step, int64 [B] each, dealt as they come."""
    return list(torch.arange(problem.samples).split(problem.circumstances.batch_size))


def deal_samples(
    samples: int, steps: int, generator: torch.Generator, most: int, affordable: int | None = None
) -> list[list[Tensor]]:
    """The ways to deal N samples to K steps of N / K each, as K tensors int64 [N / K].

    If there are more than ``most`` some are drawn at random; never more than ``most`` or ``affordable``.
    """
    size, affordable = samples // steps, min(affordable or most, most)
    if math.factorial(samples) // math.factorial(size) ** steps > most:
        return [list(torch.randperm(samples, generator=generator).split(size)) for _ in range(affordable)]
    ways = [[torch.tensor(step) for step in way] for way in _deal(tuple(range(samples)), size)]
    if len(ways) <= affordable:
        return ways
    return [ways[index] for index in torch.randperm(len(ways), generator=generator)[:affordable]]


def _deal(samples: tuple[int, ...], size: int) -> Iterator[list[tuple[int, ...]]]:
    if not samples:
        yield []
    for step in combinations(samples, size) if samples else ():
        for following in _deal(tuple(sample for sample in samples if sample not in step), size):
            yield [step, *following]
