"""Which captures a run keeps: in words, and whether that can be."""

from typing import TYPE_CHECKING

from experiments.settings import AttackSettings
from fl_sim.config import SettingsError
from strategies.capture_folder import readable
from strategies.gossip import Gossip

if TYPE_CHECKING:
    from experiments.experiment import Experiment

_STAY = {"all": "captures of all updates stay", "attacked": "no other is captured", "none": "no capture stays"}


def describe_captures(attack: AttackSettings) -> str:
    """Which updates are attacked and which captures stay, in a line; empty where that is all."""
    clients = f" of clients {', '.join(map(str, attack.clients))}" if attack.clients else ""
    rounds = f" of every round that is a multiple of {attack.every}, and of the last" if attack.every > 1 else ""
    attacked = f"attacked: updates{clients}{rounds}; " if clients or rounds else ""
    room = f", {readable(attack.max_disk)} at most" if attack.max_disk else ""
    return f"{attacked}{_STAY[attack.capture]}{room}" if attacked or room or attack.capture != "all" else ""


def check_captures(experiment: "Experiment") -> None:
    """SettingsError if the attacker never sees the clients that it is to attack, or has no room for a capture."""
    settings, recipe, strategy = experiment.settings, experiment.recipe, experiment.strategy
    attack = settings.attack
    if not attack.names:
        return
    if attack.clients and experiment.defence.sum_only:
        raise SettingsError(
            f"attack.clients = {list(attack.clients)}: with defence.name = {settings.defence.name!r} the server sees "
            "the sum of all clients alone; allowed: unset, or another defence"
        )
    if isinstance(strategy, Gossip):
        heard = {peer for curious in settings.federation.curious_peers for peer in strategy.neighbours(curious)}
        if not any(map(attack.chooses, heard)):
            raise SettingsError(
                f"attack.clients = {list(attack.clients)}: no curious peer hears them; allowed: unset, or some of "
                f"{', '.join(map(str, sorted(heard)))}"
            )
    trained = {*recipe.trained_names()}
    least = sum(4 * value.numel() * (2 if name in trained else 1) for name, value in experiment.weights.items())
    if attack.max_disk is not None and attack.max_disk < least:
        raise SettingsError(
            f"attack.max_disk = {int(attack.max_disk)}: a capture takes at least {least} bytes; allowed: more than that"
        )
