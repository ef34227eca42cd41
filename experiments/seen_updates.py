"""Which updates the attacker sees, and which it attacks and captures."""

from collections.abc import Iterator

from attacks.observation import UpdateId
from experiments.experiment import Experiment
from experiments.settings import ExperimentSettings
from fl_sim.repeatable_grid import RoundLog
from strategies.gossip import Gossip


def seen_updates(experiment: Experiment, log: RoundLog) -> Iterator[UpdateId]:
    """The updates that the attacker saw in a round: those of the clients that replied, or their sum."""
    strategy, number = experiment.strategy, log.round
    if not experiment.settings.attack.names:
        return
    if isinstance(strategy, Gossip):
        for peer in {*experiment.settings.federation.curious_peers} & {*log.replied}:
            yield from (UpdateId(number, c, peer) for c in strategy.neighbours(peer) if c in log.replied)
    elif experiment.defence.sum_only:
        yield UpdateId(number, -1)
    else:
        yield from (UpdateId(number, client) for client in log.replied)


def is_attacked(settings: ExperimentSettings, update_id: UpdateId) -> bool:
    """Whether an update that is seen is attacked too, now or later."""
    attack = settings.attack
    return attack.due(update_id.round, settings.federation.rounds) and attack.chooses(update_id.client)


def is_captured(settings: ExperimentSettings, update_id: UpdateId) -> bool:
    """Whether an update that is seen is captured, be it until its attacks have ended."""
    return settings.attack.capture == "all" or is_attacked(settings, update_id)
