"""What a run will cost, from one gradient that is timed here; an estimate, and it says of what."""

import math
from dataclasses import dataclass
from time import perf_counter

import torch

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
    "times their number and rounds. An attack takes its max_evaluations, times the root of the number of images, each "
    "as long as two gradients of the training loss of all of them took here, and at most attack.timeout; most end "
    "earlier, and one without that budget counts with the timeout. A search for timesteps that cannot be read off, as "
    "under noise, may take several times as long. Not in it: measuring the model, and what runs side by side take "
    "from each other."
)


@dataclass(frozen=True)
class Cost:
    """Seconds of one run: of all its clients' replies, and of all its attacks to the end of their budgets."""

    training: float
    attacks: int
    attacking: float

    def __str__(self) -> str:
        least, most = in_words(self.at_least()), in_words(self.at_most())
        return f"{least}, of which {in_words(self.training)} training" + (
            f"; with {self.attacks} attacks to the end of their budgets {most}" if self.attacks else ""
        )

    def at_most(self) -> float:
        """Of the whole run, attacks to the end of their budgets; they go on beside the rounds: the longer counts."""
        return STARTING_SECONDS + max(self.training, self.attacking)

    def at_least(self) -> float:
        """Where every attack ends at once."""
        return STARTING_SECONDS + self.training


def estimate(experiment: Experiment) -> Cost:
    """Time one client's first batch and its gradient, and multiply; it has been tried before, to be timed at its pace.

    Raises:
        UserError: if the batch cannot be trained, or an attack could not work on its update.
    """
    settings, recipe = experiment.settings, experiment.recipe
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
    evaluation = 2 * gradient  # the gradient, and the derivative of its distance by one difference
    budget = math.sqrt(summed * len(draw.images)) * summed * evaluation
    longest = [_longest(create(name, given), budget, attack.timeout) for name, given in attack.arguments.items()]
    attacks = most_attacked(experiment)
    return Cost(training, attacks * len(longest), attacks * sum(longest) / attack.workers)


def _longest(attack: object, seconds: float, timeout: float) -> float:
    """Most seconds of one attack, so many for each evaluation of its budget."""
    evaluations = getattr(attack, "max_evaluations", None)
    return timeout if evaluations is None else min(timeout, evaluations * seconds)


def in_words(seconds: float) -> str:
    """Seconds, or minutes and hours."""
    return f"{seconds:.1f} s" if seconds < 1 else duration(seconds)
