"""The residual attack: it searches for the noisy image and the network's error, instead of image and noise.

With the residual r = f_theta(x_t, t) - target the gradient of the training loss is

    grad_theta L = (2/n) J_theta(x_t, t)^T r,        n = number of averaged elements,

a function of (x_t, t, r) only, and linear in r. So the attack

1. reads the timesteps off the gradient, and the labels of a class-conditional network
   (attacks/timesteps/recovery.py), or finds one timestep by matching (attacks/residual/timestep_tournament.py);
2. searches for (x_t, r) by matching gradients, in the stages below;
3. computes x0 from (x_t, r) in closed form (``fl_sim.diffusion.x0_from_residual``).

Private noise is no protection: eps = f_theta(x_t, t) - r for noise prediction, so it is found along with the image.

Stages, in their order:

- first starts (attacks/residual/first_starts.py): random starts, the first with the x_t that the row spaces of the
  gradient determine (attacks/residual/subspace_init.py);
- batch refinement (attacks/residual/batch_refinement.py): of several samples, those that are behind alone;
- local training (attacks/residual/local_training.py): several local steps are simulated;
- polish (attacks/residual/polish.py): the end of the search, in the K-FAC metric (attacks/residual/kfac_metric.py);
- the most probable image (attacks/residual/map_estimate.py), where the gradient is noisy.

The unknowns are scaled so that all of them move the gradient alike (attacks/residual/unknowns.py). The squared error is
weighed by variances and balanced over the parameter tensors (attacks/inversion/entry_weights.py).
"""

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from typing_extensions import override

from attacks.attack import Attack, Needs, Outcome
from attacks.inversion.adam_steps import step_problems, tells_signs
from attacks.inversion.budget import Budget
from attacks.inversion.entry_weights import matching_distance, noise_floor
from attacks.inversion.gradient_matching import Derivative
from attacks.inversion.problem import InversionProblem
from attacks.inversion.restarts import Patience
from attacks.inversion.sign_loss import sign_distance, sign_floor
from attacks.residual.adam_steps import AdamSteps, side_by_side
from attacks.residual.batch_refinement import BatchRefinement
from attacks.residual.first_starts import FirstStarts
from attacks.residual.kfac_metric import KFACMetric
from attacks.residual.local_training import LocalTraining
from attacks.residual.map_estimate import MapEstimate
from attacks.residual.minimiser import Candidate, CandidateRules, Minimiser, solved_below
from attacks.residual.polish import Polish, SignPolish
from attacks.residual.stage import Stage
from attacks.residual.timestep_tournament import TimestepCheck, TimestepTournament, at_timestep
from attacks.residual.unknowns import Unknowns, possible_unknowns
from attacks.timesteps.conditions import HiddenTimestepsError


class Residual(Attack):
    """Search over (x_t, r) with private noise and timesteps; over x0 first, where the server dictated them."""

    name: ClassVar[str] = "residual"
    needs: ClassVar[Needs] = Needs.DIFFUSION_TASK | Needs.LOCAL_STEPS | Needs.OWN_SIGNS
    update_copies: ClassVar[int] = 16

    starts: tuple[tuple[float, float], ...] = Field(
        ((0.3, 0.3), (0.05, 0.05), (1.0, 1.0), (0.3, 0.3), (1.0, 0.05), (0.05, 0.05)),
        min_length=1,
        description="scale of the random start of x_t, and of r in units of its expected size; tried in this order",
    )
    max_evaluations: int = Field(
        2000, ge=1, description="budget over all starts, times the square root of the number of images"
    )
    precision: float = Field(
        1e-4, gt=0, description="solved when the estimated relative error of the image falls below this"
    )
    layer_balance_power: float = Field(
        1.5, ge=0, le=2, description="0: plain squared error; 2: all parameter tensors count the same"
    )
    history: int = Field(
        300, ge=1, description="curvature pairs of L-BFGS; long histories pay, the search is ill-conditioned"
    )
    derivative: Derivative = Field("one-sided", description="derivative of the matching loss")
    search_timestep: bool = Field(
        True, description="find a single image's timestep by matching where it cannot be read off the update"
    )
    sign_temperature: float = Field(0.1, gt=0, description="temperature of the sign loss, before the last stage")
    rules: CandidateRules = Field(CandidateRules(), description="when a candidate is on track, and samples fit")
    patience: Patience = Field(Patience(), description="how often a candidate is looked at")
    kfac_metric: KFACMetric = Field(KFACMetric(), description="the metric at the end of a search")
    first_starts: FirstStarts = Field(FirstStarts(), description="first stage")
    timestep_tournament: TimestepTournament = Field(
        TimestepTournament(), description="first stage, where a single image's timestep cannot be read off"
    )
    batch_refinement: BatchRefinement = Field(BatchRefinement(), description="stage of several samples")
    local_training: LocalTraining = Field(LocalTraining(), description="stage of several local steps")
    adam_steps: AdamSteps = Field(AdamSteps(), description="stage of two Adam steps")
    polish: Polish = Field(Polish(), description="stage at the end of the search")
    timestep_check: TimestepCheck = Field(TimestepCheck(), description="stage after a tournament of timesteps")
    sign_polish: SignPolish = Field(SignPolish(), description="stage of signs")
    map_estimate: MapEstimate = Field(MapEstimate(), description="stage of noisy gradients")

    @property
    @override
    def curvature_pairs(self) -> int:
        return self.history

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Pass a candidate through the stages and compute the image from it.

        Raises:
            HiddenTimestepsError: if the timesteps can neither be read off nor searched for, or labels not be read off.
        """
        evaluations = int(self.max_evaluations * math.sqrt(problem.samples))
        if tells_signs(problem.circumstances):
            return self._search_adam_steps(problem, generator, problem.budget.of(evaluations))
        return self._find(problem, generator, evaluations).outcome()

    def _search_adam_steps(self, problem: InversionProblem, generator: torch.Generator, budget: Budget) -> Outcome:
        """Solve the two problems of signs that two Adam steps fall apart into, then match the update itself."""
        unknowns = possible_unknowns(problem)[0]
        found = []
        for part in step_problems(problem):
            found.append(self._find(part, generator, budget.share(self.adam_steps.step_share)))
            budget.spend(part.budget.spent)
        if not problem.simulates_local_steps:
            return side_by_side(found)
        joined = self.adam_steps.join(self.minimiser(problem, [unknowns], generator), unknowns, found)
        return self.adam_steps.run(joined, budget).outcome()

    def _find(self, problem: InversionProblem, generator: torch.Generator, evaluations: int) -> Candidate:
        """The candidate that the stages find within so many evaluations."""
        budget = problem.budget.of(evaluations)
        stages = self._stages(problem, budget)
        try:
            possible = possible_unknowns(problem)
        except HiddenTimestepsError:
            if not self.search_timestep or problem.samples > 1:
                raise
            possible = [at_timestep(problem, problem.scheduler.config.num_train_timesteps // 2)]
            stages = self._stages_with_tournament(problem, budget)
        candidate = self.minimiser(problem, possible, generator).begin()
        for stage, share in stages:
            candidate = stage.run(candidate, share)
        return candidate

    def _stages(self, problem: InversionProblem, budget: Budget) -> Iterator[tuple[Stage, Budget]]:
        """The stages with their budgets, in their order."""
        simulates = problem.simulates_local_steps
        whole = budget.share(1)
        reserve = self._reserve(problem, budget)
        search = whole // 2 if simulates else whole - reserve
        yield self.first_starts, budget.until(search // 2)
        if problem.samples > 1:
            yield self.batch_refinement, budget.until(search)
        if simulates:
            yield self.local_training, budget
            yield self.batch_refinement, budget
        yield from self._last_stages(problem, budget, reserve)

    def _stages_with_tournament(self, problem: InversionProblem, budget: Budget) -> Iterator[tuple[Stage, Budget]]:
        """The same for a single image with an unknown timestep; later budgets start where the tournament ended."""
        tournament = self.timestep_tournament
        yield tournament, budget.until(budget.share(tournament.budget_factor))
        reserve = self._reserve(problem, budget)
        rest = budget.more(budget.share(tournament.polish_share))
        yield from self._last_stages(problem, rest, reserve, check_timestep=True)

    def _last_stages(
        self, problem: InversionProblem, budget: Budget, reserve: int, check_timestep: bool = False
    ) -> Iterator[tuple[Stage, Budget]]:
        """What follows a search, however it began."""
        yield self.polish, budget.until(int(budget.limit) - reserve)
        if check_timestep:
            yield self.timestep_check, budget
        if problem.signs_only:
            yield self.sign_polish, budget
        if reserve:
            yield self.map_estimate, budget

    def _reserve(self, problem: InversionProblem, budget: Budget) -> int:
        """Evaluations that are kept for the most probable image."""
        probable = problem.noisy and not problem.simulates_local_steps
        return budget.share(self.map_estimate.budget_share) if probable else 0

    def minimiser(
        self, problem: InversionProblem, possible: Sequence[Unknowns], generator: torch.Generator
    ) -> Minimiser:
        """The minimiser of the first stages: for one batch, by the distance that fits what is known of the gradient."""
        if problem.signs_only:
            distance = sign_distance(list(problem.gradient.values()), self.sign_temperature)
            floor = sign_floor(self.sign_temperature)
        else:
            distance = matching_distance(problem, self.layer_balance_power)
            floor = noise_floor(problem, self.layer_balance_power)
        return Minimiser(
            problem=problem,
            possible=possible,
            distance=distance,
            metric=self.kfac_metric if self.kfac_metric.applies_to(problem) else None,
            generator=generator,
            start_scales=self.starts,
            precision=self.precision,
            on_track_below=max(
                self.rules.on_track_factor * solved_below(self.precision, possible), self.rules.noise_allowance * floor
            ),
            rules=self.rules,
            patience=self.patience.for_samples(problem.samples),
            layer_balance_power=self.layer_balance_power,
            history=self.history,
            derivative=self.derivative,
        )
