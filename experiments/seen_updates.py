"""Which updates the attacker sees."""

from collections.abc import Iterator

from attacks.observation import UpdateId
from experiments.experiment import Experiment
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
