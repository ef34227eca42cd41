"""A timestep that cannot be read off an update, found by matching.

Where the time layers' gradients are kept back, or lost in noise, all other layers still depend on the timestep: at a
wrong one no (x_t, r) explains their gradients, and the nearer it is to the right one the smaller the matching loss. So
searches at timesteps spread over the schedule compete by successive halving, and the winner with its neighbours, at
smaller and smaller distances.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attacks.inversion.problem import InversionProblem
from attacks.inversion.restarts import successive_halving
from attacks.residual.unknowns import PrivateSpace, SpaceRun

_SPREAD = 24
_DISTANCES = (20, 10, 5, 3, 2, 1)
"""Where T = 1000; they scale with T."""

Run = Callable[[PrivateSpace, Sequence[Tensor]], SpaceRun]
"""A search in a space from a start."""


def match_timestep(
    problem: InversionProblem,
    run: Run,
    generator: torch.Generator,
    scales: tuple[float, float],
    evaluations: int,
) -> SpaceRun:
    """The search whose one timestep explains the update best; every round of halving takes ``evaluations`` a run."""
    last = int(problem.scheduler.config.num_train_timesteps) - 1
    spread = {round(last * (2 * k + 1) / (2 * _SPREAD)) for k in range(_SPREAD)}
    spaces = [PrivateSpace(problem, _one(problem, timestep)) for timestep in sorted(spread)]
    [best] = successive_halving([run(space, space.start(generator, *scales)) for space in spaces], evaluations)
    for distance in dict.fromkeys(max(1, round(distance * last / 999)) for distance in _DISTANCES):
        here = int(best.space.timesteps)
        neighbours = [timestep for timestep in (here - distance, here + distance) if 0 <= timestep <= last]
        [best] = successive_halving([best, *(_moved(best, timestep, run) for timestep in neighbours)], evaluations)
    return best


def _moved(found: SpaceRun, timestep: int, run: Run) -> SpaceRun:
    """A search from what was found, at another timestep."""
    assert isinstance(found.space, PrivateSpace)
    space = PrivateSpace(found.space.problem, _one(found.space.problem, timestep))
    return run(space, space.unknowns_of(*found.space.noisy_images_and_residuals(found.unknowns)))


def _one(problem: InversionProblem, timestep: int) -> Tensor:
    return torch.tensor([timestep], device=problem.device)
