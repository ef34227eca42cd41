"""The residual attack: search over the noisy image and the network's error instead of image and noise.

With the residual r = f_theta(x_t, t) - target the gradient of the training loss is

    grad_theta L = (2/n) J_theta(x_t, t)^T r,        n = number of averaged elements,

a function of (x_t, t, r) only, and linear in r. The timesteps are read off the gradient (attacks/timesteps/recovery.py), (x_t,
r) are searched for with L-BFGS, and the image follows in closed form (``fl_sim.diffusion.x0_from_residual``). Private
noise is therefore no protection: it is found along with the image. Seven things make the search short and reliable:

- the squared error is weighed by what is uncertain and balanced over the parameter tensors (attacks/inversion/entry_weights.py);
- r is measured in units of its expected size rho(t), which the attacker finds on random smooth images;
- in a batch x_t is measured in units of 1 / rho(t), so that every sample's unknowns move the gradient alike;
- where the layers' inputs span spaces that the gradient shows, x_t is found by these alone, then r at this x_t, then
  both together (attacks/residual/subspace_init.py);
- a start that stops making progress is left for one of another scale (attacks/inversion/restarts.py);
- in a batch samples that are found in each other's place change places (attacks/residual/sample_diagnostics.py), those that are
  behind are searched for alone, and those that are wrong are drawn anew (attacks/residual/batch_refinement.py);
- an exact gradient that nearly matches is matched on in a metric that shortens the end (attacks/residual/kfac_metric.py).

Several local steps are first matched as one batch and then simulated (attacks/residual/local_training.py). Else, of a noisy
gradient the most probable image is searched for in the end (attacks/residual/map_estimate.py). Where the timestep of a single image
cannot be read off, it is found by matching (attacks/residual/timestep_tournament.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Needs, Outcome
from attacks.inversion.entry_weights import distance_for, noise_floor
from attacks.inversion.gradient_matching import Derivative, Distance, GradientMatching, Matching, flatten
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.inversion.restarts import STANDSTILL, race, search_on, search_starts, successive_halving
from attacks.inversion.sign_loss import sign_distance, sign_floor
from attacks.residual.batch_refinement import BatchSearch, Rerun, never
from attacks.residual.kfac_metric import can_be_whitened, whitened_squared_error
from attacks.residual.local_training import SimulatedTraining, assignments
from attacks.residual.map_estimate import Posterior, with_all_that_is_known
from attacks.residual.subspace_init import told_by_input_spans
from attacks.residual.timestep_tournament import match_timestep
from attacks.residual.unknowns import BatchRun, PrivateSpace, Sharper, Space, SpaceRun, spaces
from attacks.timesteps.recovery import HiddenTimestepsError

_HALVING_SLICE = 15
_FINALISTS = 3
"""Orders of the local steps whose searches go on until one leads clearly: early losses mislead."""
_HALVING_SHARE = 1 / 64
"""Of ``max_evaluations``, for each search in a round of the contest of timesteps."""
_MATCHING = 2
"""Times ``max_evaluations`` for contests of timesteps; one takes about ``max_evaluations``."""
_CLEAR = 0.1
"""Matching loss above which noise hides which timestep is right: many explain what there is to explain."""
_FOUND = 100
"""Times the matching loss of a solved search: a start that gets there is on its way, and the others are not tried."""
_NEAR = 1.05
"""Times the matching loss that noise alone leaves: the end of a search comes near it slowly."""
_HELD = 80
"""Evaluations for r while x_t is held; the matching loss stands still then."""
_PROMISING = 1e-2
"""Matching loss of a batch from which on it is worth searching for those samples only that do not fit yet."""
_POSTERIOR_SHARE = 1 / 8
"""Of the evaluations, for the most probable image where the gradient is noisy."""
_TEMPERATURES = (0.1, 0.01)
"""Of ``sign_distance``: the first finds the image, the others make it sharper."""
_MODEL_ERROR = 2.0
"""Times what taking local steps for a batch changes the gradient by, for a matching loss that comes of that alone."""


class Residual(Attack):
    """Search over (x_t, r), private noise and timesteps (or first over x_t alone, where the server dictated them).

    A start is worked on as long as its matching loss at least halves every 80 evaluations (times
    the square root of the number of images).
    """

    name: ClassVar[str] = "residual"
    needs: ClassVar[Needs] = Needs.LOCAL_STEPS | Needs.OWN_SIGNS

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
    balance: float = Field(1.5, ge=0, le=2, description="power of balanced_weights; 0 is the plain squared error")
    history: int = Field(300, ge=1, description="L-BFGS history; long pays, the search is ill-conditioned")
    search_timestep: bool = Field(
        True, description="find a single image's timestep by matching where it cannot be read off the update"
    )
    derivative: Derivative = Field(
        "one-sided", description="derivative of the matching loss (attacks/inversion/gradient_matching.py)"
    )

    def search(self, problem: InversionProblem, generator: torch.Generator) -> Outcome:
        """Find (x_t, r) by L-BFGS from several starts and compute the image from them."""
        distance, *finer = self._distances(problem)
        try:
            possible = spaces(problem)
        except HiddenTimestepsError:
            if not self.search_timestep or problem.samples > 1:
                raise
            return self._search_with_timestep(problem, generator, distance, finer)
        solved_below = self._solved_below(*possible)
        found_below = self._found_below(problem, solved_below)
        allowed = int(self.max_evaluations * math.sqrt(problem.samples))
        one_client = problem.circumstances.num_clients == 1
        simulates = one_client and problem.circumstances.local_steps > 1 and problem.scale_known
        reserve = int(_POSTERIOR_SHARE * allowed) if problem.noisy and not simulates else 0
        before_simulation = allowed // 2 if simulates else allowed - reserve
        starts = self._starts(possible, generator, distance, allowed // 4)
        good_enough = found_below if problem.samples == 1 else max(found_below, _PROMISING)
        found = search_starts(starts, problem, before_simulation // 2, good_enough)
        if problem.samples > 1:
            rerun = partial(self._run, found.space, distance=distance)
            enough = partial(self._batch_will_do, distance=distance) if simulates else never
            goal = found_below if simulates or problem.noisy else solved_below
            search = self._batch_search(rerun, generator, before_simulation, goal)
            found = search.search(found, found_below, enough)
        if simulates:
            found = self._simulation(found, distance, generator, allowed, found_below)
        return self._end_well(found, allowed, reserve, solved_below, finer).outcome()

    def _search_with_timestep(
        self, problem: InversionProblem, generator: torch.Generator, distance: Distance, finer: Sequence[Distance]
    ) -> Outcome:
        """Find the timestep of one image along with it; -1 where none explains the update."""
        run = partial(self._run, distance=distance, sharpen=False)  # contests need one objective
        evaluations = math.ceil(self.max_evaluations * _HALVING_SHARE)
        starts = (match_timestep(problem, run, generator, scales, evaluations) for scales in cycle(self.starts))
        halfway = torch.tensor([problem.scheduler.config.num_train_timesteps // 2], device=problem.device)
        found_below = self._found_below(problem, self._solved_below(PrivateSpace(problem, halfway)))
        found = search_starts(starts, problem, _MATCHING * self.max_evaluations, found_below)
        found.sharper = self._sharper(found.space, partial(self._matching, found.space))
        budget = problem.evaluations + self.max_evaluations // 2
        reserve = int(_POSTERIOR_SHARE * self.max_evaluations) if problem.noisy else 0
        outcome = self._end_well(found, budget, reserve, self._solved_below(found.space), finer).outcome()
        if found.loss > min(found_below, _CLEAR):
            return replace(outcome, timesteps=torch.full_like(outcome.timesteps, -1))
        return outcome

    def _end_well(
        self, found: SpaceRun, budget: int, reserve: int, solved_below: float, finer: Sequence[Distance]
    ) -> SpaceRun:
        """Search on while it helps: by the finer distances, and with the ``reserve`` for the most probable image."""
        problem = found.space.problem
        search_on(found, problem, budget - reserve, solved_below, STANDSTILL)
        for distance in finer:
            found = self._run(found.space, found.unknowns, distance)
            search_on(found, problem, budget, solved_below, STANDSTILL)
        if not reserve:
            return found
        space, unknowns = with_all_that_is_known(found.space, found.unknowns)
        if problem.scale_known:
            found = SpaceRun(space, Posterior(space, self.derivative), unknowns, self.history)
            search_on(found, problem, budget, 0.0, STANDSTILL)
        return found

    def _solved_below(self, *possible: Space) -> float:
        return (self.precision / max(space.amplification for space in possible)) ** 2

    def _found_below(self, problem: InversionProblem, solved_below: float) -> float:
        """The matching loss of a start that is on its way."""
        floor = sign_floor(_TEMPERATURES[0]) if problem.signs_only else noise_floor(problem, self.balance)
        return max(_FOUND * solved_below, _NEAR * floor)

    def _distances(self, problem: InversionProblem) -> list[Distance]:
        """One to search with and, of signs, another to make the result sharper."""
        if problem.signs_only:
            return [sign_distance(list(problem.gradient.values()), temperature) for temperature in _TEMPERATURES]
        return [distance_for(problem, self.balance)]

    def _run(self, space: Space, start: Sequence[Tensor], distance: Distance, sharpen: bool = True) -> SpaceRun:
        one_step = space.problem.circumstances.local_steps == 1  # of several this is no exact model
        sharper = self._sharper(space, partial(self._matching, space)) if sharpen and one_step else None
        batch = space.problem.samples > 1 and isinstance(space, PrivateSpace)
        return (BatchRun if batch else SpaceRun)(space, self._matching(space, distance), start, self.history, sharper)

    def _matching(self, space: Space, distance: Distance) -> GradientMatching:
        return GradientMatching(space.problem, space.training_loss, distance, self.derivative, space.images)

    def _sharper(self, space: Space, matching_by: Callable[[Distance], Matching]) -> Sharper | None:
        """The matching loss in the metric of attacks/residual/kfac_metric.py, where the gradient is exact enough for that."""
        if not can_be_whitened(space.problem):
            return None
        return lambda unknowns: matching_by(self._whitened(space, unknowns))

    def _whitened(self, space: Space, unknowns: Sequence[Tensor]) -> Distance:
        x_t = space.noisy_images(unknowns).detach()
        return whitened_squared_error(space.problem, x_t, space.timesteps, self.balance)

    def _starts(
        self, possible: Sequence[Space], generator: torch.Generator, distance: Distance, for_spans: int
    ) -> Iterator[SpaceRun]:
        """Random starts without end, the first in each space with the x_t that the layers' inputs tell, if they do."""
        for number, scales in enumerate(cycle(self.starts)):
            for space in possible:
                run = self._run(space, space.start(generator, *scales), distance)
                if number == 0:
                    self._guide(run, generator, for_spans // len(possible))
                yield run

    def _guide(self, run: SpaceRun, generator: torch.Generator, evaluations: int) -> None:
        """Start the run at the x_t that the layers' inputs tell (attacks/residual/subspace_init.py), if they do.

        The gradient is linear in r, so that the search for r at that x_t is one for the bottom of a parabola.
        """
        space, problem = run.space, run.space.problem
        if not isinstance(space, PrivateSpace) or problem.circumstances.local_steps > 1:
            return  # the layers' inputs in later steps are not those at the weights sent
        x_t = told_by_input_spans(problem, space.timesteps, generator, evaluations)
        if x_t is None:
            return
        held, start = space.unknowns_of(x_t, space.noisy_images_and_residuals(run.unknowns)[1])
        held.requires_grad_()

        def of_residual(residual: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
            value, (_, derivative) = run.matching([held, *residual])
            return value, [derivative]

        alone = LBFGSRun(of_residual, [start], self.history)
        alone.advance(min(_HELD, evaluations))
        run.put_back([held, *alone.unknowns])

    def _batch_search(self, rerun: Rerun, generator: torch.Generator, max_evaluations: int, goal: float) -> BatchSearch:
        return BatchSearch(rerun, generator, self.starts, self.balance, self.derivative, max_evaluations, goal)

    def _simulated(self, space: Space, distance: Distance) -> SimulatedTraining:
        """The client's steps, with the samples dealt to them as they come."""
        in_order = list(torch.arange(space.problem.samples).split(space.problem.circumstances.batch_size))
        return SimulatedTraining(space.problem, space.step_loss, in_order, distance, space.images)

    def _batch_will_do(self, run: SpaceRun, distance: Distance) -> bool:
        """Whether what is left of the matching loss is no more than taking local steps for a batch makes it."""
        simulated = self._simulated(run.space, distance)
        of_steps = [value.detach().requires_grad_() for value in run.space.of_steps(run.unknowns, simulated.steps)]
        steps, batch = simulated.gradient(of_steps), run.matching.gradient(run.unknowns)
        difference, _ = distance(flatten(list(steps.values())), flatten(list(batch.values())))
        return run.loss < _MODEL_ERROR * float(difference)

    def _simulation(
        self, found: SpaceRun, distance: Distance, generator: torch.Generator, max_evaluations: int, below: float
    ) -> SpaceRun:
        """A search that simulates the client's steps, from what was ``found`` as one batch at the weights sent.

        Where timesteps were read off the update it does not tell which step a sample belongs to: all ways to deal them
        out compete, by successive halving on the matching loss and then in a race of the best few. Samples that are
        still wrong then are drawn anew.
        """
        space, problem = found.space, found.space.problem
        simulated = self._simulated(space, distance)
        ways: Sequence[Sequence[Tensor]] = [simulated.steps]  # of a dictated draw
        if problem.noise is None:
            affordable = (max_evaluations - problem.evaluations) // (2 * _HALVING_SLICE)
            ways = assignments(problem.samples, problem.circumstances.local_steps, generator, max(1, affordable))
        runs = [
            SpaceRun(space, simulated.dealt(way), space.of_steps(found.unknowns, way), self.history) for way in ways
        ]
        found = race(successive_halving(runs, _HALVING_SLICE, _FINALISTS), problem, max_evaluations)
        assert isinstance(found.matching, SimulatedTraining)
        found.sharper = self._sharper(space, found.matching.measured_by)
        rerun = partial(SpaceRun, space, found.matching, history=self.history, sharper=found.sharper)
        return self._batch_search(rerun, generator, max_evaluations, below).search(found, below)
