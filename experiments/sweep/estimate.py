"""What a sweep will cost, from one gradient of each run that is timed here; an estimate, and it says of what."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

import torch
from rich.table import Table

from attacks.registry import create
from experiments.batch_trial import try_first_batch
from experiments.experiment import Experiment
from experiments.progress import duration, most_attacked
from fl_sim import network
from fl_sim.client_app import plain_gradient, private_draw

STARTING_SECONDS = 20.0
"""To start Ray, the clients and the workers, and to write the report: about what that takes on two idle cores."""

MADE_OF = (
    f"An estimate. A run takes {STARTING_SECONDS:.0f} s to start and to end, its clients what one reply took here "
    "times their number and rounds. An attack takes at most its max_evaluations, times the root of the number of "
    "images, each as long as a gradient of the training loss of all of them took here, and at most attack.timeout; "
    "most end earlier, and one without that budget counts with the timeout. Not in it: measuring the model, and what "
    "runs side by side take from each other."
)


@dataclass(frozen=True)
class Cost:
    """Seconds of one run: of all its clients' replies, and most of all its attacks, of which there are so many."""

    training: float
    attacks: int
    attacking: float

    def at_most(self) -> float:
        """Of the whole run: attacks go on beside the rounds, so that the longer of the two counts."""
        return STARTING_SECONDS + max(self.training, self.attacking)

    def at_least(self) -> float:
        """Where every attack ends at once."""
        return STARTING_SECONDS + self.training


def estimate(experiment: Experiment) -> Cost:
    """Try out one client's first batch, time it and its gradient, and multiply.

    Raises:
        UserError: if the batch cannot be trained, or an attack could not work on its update.
    """
    settings, recipe = experiment.settings, experiment.recipe
    try_first_batch(experiment)  # everything is imported and decoded now
    started = perf_counter()
    try_first_batch(experiment)
    reply = perf_counter() - started
    draw = private_draw(settings, recipe, 0, 1)
    with torch.random.fork_rng(devices=[]):
        model = network.build_model(recipe.model)
    model.load_state_dict(experiment.weights)
    started = perf_counter()
    plain_gradient(model, recipe.task, draw)
    gradient = perf_counter() - started
    asked = settings.federation.clients_per_round or settings.federation.clients
    one_step = gradient * recipe.batch_size / len(draw.images)
    training = settings.federation.rounds * asked * (reply - one_step + gradient)
    attack = settings.attack
    if not attack.in_run:
        return Cost(training, 0, 0.0)
    summed = asked if experiment.defence.sum_only else 1
    budget = math.sqrt(summed * len(draw.images)) * summed * gradient
    longest = [_longest(create(name, given), budget, attack.timeout) for name, given in attack.arguments.items()]
    attacks = most_attacked(experiment)
    return Cost(training, attacks * len(longest), attacks * sum(longest) / attack.workers)


def _longest(attack: object, seconds: float, timeout: float) -> float:
    """Most seconds of one attack, so many for each evaluation of its budget."""
    evaluations = getattr(attack, "max_evaluations", None)
    return timeout if evaluations is None else min(timeout, evaluations * seconds)


def describe(costs: Mapping[str, Cost], repetitions: int, jobs: int) -> tuple[Table, list[str]]:
    """The plan as a table, a row for every run of the first repetition, and in words what it adds up to."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("run", "training", "attacks", "attacking, at most"):
        table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold")
    for name, cost in costs.items():
        table.add_row(name, _time(cost.training), str(cost.attacks), _time(cost.attacking))
    runs = repetitions * len(costs)
    least, most = (
        repetitions * sum(seconds) / min(jobs, runs)
        for seconds in ([c.at_least() for c in costs.values()], [c.at_most() for c in costs.values()])
    )
    again = f"{len(costs)} points, {repetitions} repetitions each: " if repetitions > 1 else ""
    total = f"{again}{runs} runs, {min(jobs, runs)} at a time: {_time(least)} to {_time(most)}"
    return table, [total, MADE_OF]


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 1 else duration(seconds)
