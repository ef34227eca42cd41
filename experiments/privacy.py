"""The differential privacy that clients have spent, as their defence proves it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache, partial

from experiments.experiment import Experiment
from fl_sim.defences.privacy import Privacy
from fl_sim.images.partition import partition
from fl_sim.repeatable_grid import RoundLog


def privacy_spent(experiment: Experiment, rounds: Iterable[RoundLog]) -> dict[int, Privacy]:
    """(epsilon, delta) by client after ``rounds``, as if everybody who was asked had replied; empty without a proof."""
    settings = experiment.settings
    held = partition(settings.data, settings.federation.clients, settings.client.seed or 0)
    asked = Counter(client for log in rounds for client in log.asked)
    privacy = cache(partial(experiment.defence.privacy, experiment.recipe))
    spent = {client: privacy(len(held[client]), times) for client, times in sorted(asked.items())}
    return {client: privacy for client, privacy in spent.items() if privacy}


def most_spent(spent: Mapping[int, Privacy]) -> Privacy | None:
    """The largest (epsilon, delta) of any client, None if there is none."""
    return max(spent.values(), key=lambda privacy: privacy.epsilon, default=None)
