"""The minimiser of the residual attack: it starts candidates and continues them.

A candidate is one start of L-BFGS on a matching loss. Once an exact gradient nearly matches, it changes to the K-FAC
metric (attacks/residual/kfac_metric.py). In a batch, samples that it has found in each other's place change places
(attacks/residual/sample_diagnostics.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attacks.attack import Outcome
from attacks.inversion.budget import Budget
from attacks.inversion.gradient_matching import Derivative, Distance, GradientMatching, Matching
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.inversion.restarts import Patience, run_until_stalled
from attacks.inversion.simulated_training import SimulatedTraining
from attacks.residual.adam_matching import AdamMatching
from attacks.residual.kfac_metric import KFACMetric
from attacks.residual.sample_diagnostics import best_permutation, cosine_matrix, sample_misfits, sample_vectors
from attacks.residual.unknowns import NoisyImageAndResidual, Unknowns


class CandidateRules(BaseModel):
    """When a candidate is on track, and when its samples fit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    on_track_factor: float = Field(
        100, ge=1, description="a candidate is on track below so many times the matching loss of a solved one"
    )
    noise_allowance: float = Field(
        1.05,
        ge=1,
        description="a candidate is also on track below so many times the matching loss that noise alone leaves",
    )
    fits_below: float = Field(
        1e-2,
        gt=0,
        description="misfit below which a sample of a batch is on track; samples that are stuck have 0.4 to 0.9",
    )
    swap_gain: float = Field(
        0.5,
        gt=0,
        description="samples of a batch change places if the sum of their squared cosines grows by more than this",
    )


@dataclass(frozen=True)
class Minimiser:
    """Starts and continues candidates that match one gradient by one distance.

    Attributes:
        problem: the gradient to match.
        possible: the unknowns that may stand behind it, the most likely first.
        distance: D and dD/dg for flat vectors.
        metric: the metric that candidates change to near the end; None where the gradient is not exact.
        generator: of all random starts.
        start_scales: scales of x_t, and of r in units of its expected size, one pair per random start.
        precision: relative error of the image at which a candidate is solved.
        on_track_below: matching loss of a candidate that is going to be solved.
        rules, patience: of all candidates.
        layer_balance_power, history, derivative: the attack's (attacks/residual/attack.py).
        steps: the samples of every local step, each int64 [B], where training is simulated; else None.
    """

    problem: InversionProblem
    possible: Sequence[Unknowns]
    distance: Distance
    metric: KFACMetric | None
    generator: torch.Generator
    start_scales: Sequence[tuple[float, float]]
    precision: float
    on_track_below: float
    rules: CandidateRules
    patience: Patience
    layer_balance_power: float
    history: int
    derivative: Derivative
    steps: Sequence[Tensor] | None = None

    @property
    def solved_below(self) -> float:
        """(precision / image_error_gain)^2, the matching loss of a solved candidate."""
        return solved_below(self.precision, self.possible)

    def begin(self) -> "Candidate":
        """What the first stage gets: the most likely unknowns, all zero, not searched yet."""
        return self.start(self.possible[0], self.possible[0].origin())

    def matching(self, unknowns: Unknowns) -> Matching:
        """The matching loss over these unknowns: of one batch at the weights sent, or of simulated local steps."""
        if self.steps is not None:
            return self.simulate(unknowns, self.steps)
        return GradientMatching(self.problem, unknowns.training_loss, self.distance, self.derivative, unknowns.images)

    def simulate(self, unknowns: Unknowns, steps: Sequence[Tensor]) -> SimulatedTraining:
        """The matching loss of local steps over these samples, each int64 [B]."""
        optimizer = self.problem.circumstances.local_optimizer
        kind = AdamMatching if optimizer is not None and optimizer.adaptive else SimulatedTraining
        return kind(self.problem, unknowns.step_loss, steps, self.distance, unknowns.images)

    def start(self, unknowns: Unknowns, point: Sequence[Tensor], change_metric: bool = True) -> "Candidate":
        """A candidate at a point; with ``change_metric`` it changes to the K-FAC metric near the end, if there is one.

        A batch that stands for several local steps never does: its gradient is not an exact model of the update.
        """
        exact = self.steps is not None or self.problem.circumstances.local_steps == 1
        reorders = self.steps is None and self.problem.samples > 1 and isinstance(unknowns, NoisyImageAndResidual)
        candidate = Candidate(self, unknowns, self.matching(unknowns), point, reorders)
        candidate.changes_metric = change_metric and exact and self.metric is not None
        return candidate

    def draw(self, unknowns: Unknowns, scales: tuple[float, float], change_metric: bool = True) -> "Candidate":
        """A candidate at a random point of these scales."""
        return self.start(unknowns, unknowns.draw(self.generator, *scales), change_metric)

    def in_metric(self, unknowns: Unknowns, point: Sequence[Tensor]) -> Matching:
        """The matching loss in the K-FAC metric of the layers' inputs at ``point``."""
        assert self.metric is not None
        x_t = unknowns.noisy_images(point).detach()
        told = unknowns.timesteps, self.layer_balance_power, unknowns.labels
        distance = self.metric.distance(self.problem, x_t, *told)
        return replace(self, distance=distance).matching(unknowns)

    def run_until_stalled(self, run: LBFGSRun, budget: Budget, below: float, stall_ratio: float) -> None:
        """Continue a run until its loss is ``below``, falls by less than ``stall_ratio``, or the budget is spent."""
        run_until_stalled(run, budget, below, stall_ratio, self.patience)


def solved_below(precision: float, possible: Sequence[Unknowns]) -> float:
    """The matching loss at which the image is expected to have a relative error of ``precision``, whatever is right."""
    return (precision / max(unknowns.image_error_gain for unknowns in possible)) ** 2


class Candidate(LBFGSRun):
    """One start of the search, with what it has found so far.

    Attributes:
        minimiser: the minimiser that started it.
        unknowns: what ``point`` stands for.
        matching: the matching loss.
        losses: matching losses of all slices, also of those that were searched in the K-FAC metric.
        changes_metric: whether it is going to change to the K-FAC metric.
    """

    def __init__(
        self,
        minimiser: Minimiser,
        unknowns: Unknowns,
        matching: Matching,
        point: Sequence[Tensor],
        reorders: bool = False,
    ) -> None:
        super().__init__(matching, point, minimiser.history)
        self.minimiser, self.unknowns, self.matching = minimiser, unknowns, matching
        self.changes_metric = False
        self._reorders = reorders

    def advance(self, evaluations: int) -> float:
        """Search a slice of about ``evaluations`` and return ``loss``; may change the metric or the samples' places."""
        if self.objective is self.matching:
            super().advance(evaluations)
            self._change_metric()
        else:
            self._advance_in_metric(evaluations)
        if self._reorders and self.objective is self.matching and math.isfinite(self.loss):
            self._reorder()
        return self.loss

    def _change_metric(self) -> None:
        """Go over to the K-FAC metric, once, if the gradient nearly matches and every sample fits."""
        metric, rules = self.minimiser.metric, self.minimiser.rules
        if metric is None or not self.changes_metric or not self.loss < metric.below:
            return
        if self.misfits().max() < rules.fits_below:
            self.change_objective(self.minimiser.in_metric(self.unknowns, self.point))
            self.changes_metric = False

    def _advance_in_metric(self, evaluations: int) -> None:
        """A slice in the K-FAC metric; if it does not make the matching loss smaller it is undone, for good."""
        before, loss_before = [value.detach().clone() for value in self.point], self.loss
        loss = super().advance(evaluations)
        self.losses[-1] = self.matching.value(self.point) if math.isfinite(loss) else math.inf
        if not self.losses[-1] < loss_before:
            self.move_to(before)
            self.losses[-1] = loss_before
            self.change_objective(self.matching)

    def _reorder(self) -> None:
        """Put samples that were found in each other's place where they belong; after that the candidate is young."""
        assert isinstance(self.unknowns, NoisyImageAndResidual)
        cosines = cosine_matrix(*self.sample_vectors())
        places = best_permutation(cosines, self.minimiser.rules.swap_gain)
        if places is not None:
            self.move_to(self.unknowns.permuted(self.point, places))
            self.change_objective(self.matching)
            self.losses = [self.matching.value(self.point)]

    def misfits(self) -> Tensor:
        """The misfit of every sample, [N] (attacks/residual/sample_diagnostics.py)."""
        return sample_misfits(*self.sample_vectors())

    def sample_vectors(self) -> tuple[Tensor, Tensor]:
        """Each sample's own share of the time projections' gradient, and its share of the observed one; both [D,N]."""
        problem, unknowns = self.minimiser.problem, self.unknowns
        return sample_vectors(problem, unknowns.timesteps, self.matching.gradient(self.point), unknowns.labels)

    def outcome(self) -> Outcome:
        """Images, reported timesteps, matching loss and labels."""
        loss, unknowns = self.matching.value(self.point), self.unknowns
        return Outcome(self.matching.images(self.point), unknowns.reported_timesteps, loss, unknowns.labels)
