"""How the server aggregates: builds the strategy that the settings name, and checks it against the other settings."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from experiments.settings import ExperimentSettings
from experiments.strategy_trial import SAMPLE_SIZE, count_trained_clients, given_arguments
from fl_sim.config import SettingsError
from fl_sim.defences.defence import Defence
from fl_sim.errors import nearest
from fl_sim.wire import NUM_EXAMPLES, TRAIN_LOSS, Recipe
from strategies.errors import ArgumentError, StrategyError
from strategies.gossip import Gossip
from strategies.layers import layers, own_start
from strategies.registry import build_strategy, strategy_class

_NEEDS_EVERY_UPDATE = (
    flower.Bulyan,
    flower.DifferentialPrivacyServerSideAdaptiveClipping,
    flower.DifferentialPrivacyServerSideFixedClipping,
    flower.FedMedian,
    flower.FedTrimmedAvg,
    flower.MultiKrum,  # and with it Krum
    flower.QFedAvg,
)

_NOBODY_EVALUATES = ("fraction_evaluate", "min_evaluate_nodes")


def choose_strategy(
    settings: ExperimentSettings, weights: Mapping[str, Tensor], recipe: Recipe, defence: Defence
) -> tuple[ExperimentSettings, Strategy]:
    """The settings, completed, and the strategy that they name, inside FedSGD where clients send gradients.

    The settings are completed by ``federation.clients_per_round``, the number of clients that the strategy trains in
    a round. It stays as it was where that number varies, or depends on clients' answers.

    Raises:
        SettingsError: naming the setting, if there is no such strategy, or if with these clients it would fail, wait
            for ever, or train nobody.
    """
    clients, wanted = settings.federation.clients, settings.federation.clients_per_round
    names = recipe.trained_names() if recipe.partial else weights.keys()
    arrays = ArrayRecord({name: weights[name] for name in names})
    failures: list[SettingsError] = []
    # First offered all clients: a strategy with a sampling rule of its own ignores the offer.
    for offered in dict.fromkeys((clients, wanted or clients)):
        try:
            build = partial(_build, settings, offered, offered)
            trained = count_trained_clients(build, settings, arrays, recipe.to_config())
            _check_agreement(settings, trained)
        except SettingsError as error:
            failures.append(error)
            continue
        number = next(iter(trained)) if len(trained) == 1 else None
        strategy = _build(settings, offered, number or offered)
        _check_effect(settings, strategy)
        _check_layers(settings, strategy, trained, defence)
        return _with_clients_per_round(settings, number), strategy
    raise failures[0]


def _with_clients_per_round(settings: ExperimentSettings, number: int | None) -> ExperimentSettings:
    if number is None:
        return settings
    federation = settings.federation.model_copy(update={"clients_per_round": number})
    return settings.model_copy(update={"federation": federation})


def _check_agreement(settings: ExperimentSettings, trained: set[int]) -> None:
    """Refuse a given ``federation.clients_per_round`` if the strategy trains another number of clients."""
    federation = settings.federation
    if federation.clients_per_round is None or trained <= {federation.clients_per_round}:
        return
    always = len(trained) == 1
    shown = str(*trained) if always else f"{min(trained)} to {max(trained)}"
    raise SettingsError(
        f"federation.clients_per_round = {federation.clients_per_round}: {given_arguments(settings, SAMPLE_SIZE)} "
        f"trains {shown} of federation.clients = {federation.clients} in a round; "
        f"allowed: {shown if always else 'to leave it unset'}"
    )


def _build(settings: ExperimentSettings, per_round: int, sampled: int) -> Strategy:
    """The strategy of the settings; ``strategy.args`` come before what is offered.

    Args:
        settings: of the run.
        per_round: how many clients to train in a round.
        sampled: ``num_sampled_clients``, for which differential privacy scales its noise.
    """
    name, args = settings.strategy.name, settings.strategy.args
    with _as_setting_errors(settings, {"name": "strategy.name"}):
        strategy_class(name)
    if name == "Gossip" or settings.federation.topology != "server":
        return _gossip(settings)
    if args.get("inner") == "Gossip":
        raise SettingsError(
            "strategy.args.inner = 'Gossip': has no server to be wrapped by; allowed: FedAvg and the like"
        )
    _check_evaluation(args)
    keys = {}
    if settings.client.update == "gradient" and name != "FedSGD":
        if "inner" in args:
            raise SettingsError(
                f"strategy.args.inner = {args['inner']!r}: with client.update = 'gradient' FedSGD's inner strategy is "
                f"strategy.name = {name!r}; give one of them"
            )
        name, args, keys = "FedSGD", {**args, "inner": name}, {"inner": "strategy.name", "strategy": "strategy.name"}
    elif settings.client.update == "gradient":
        keys = {"strategy": "strategy.args.inner"}
    else:
        for key, value in (("strategy.name", name), ("strategy.args.inner", args.get("inner"))):
            if value == "FedSGD":
                raise SettingsError(
                    f"{key} = 'FedSGD': takes gradients, but client.update = 'weights'; allowed: client.update = "
                    "'gradient', or another strategy, such as 'FedAvg'"
                )
    with _as_setting_errors(settings, keys):
        strategy = build_strategy(name, args, _offers(settings, per_round, sampled))
    if (owner := own_start(strategy)) is not None:
        raise SettingsError(
            f"strategy.name = {settings.strategy.name!r}: {owner} has a start of its own, but a run goes by Flower's "
            "rounds; leave start as it is"
        )
    return strategy


def _offers(settings: ExperimentSettings, per_round: int, sampled: int) -> dict[str, Any]:
    """Flower's arguments that follow from other settings; no client evaluates, as that tells nothing about leakage."""
    clients = settings.federation.clients
    # Flower takes the larger of the two, and rounds the fraction down. So a class that fixes either keeps its choice.
    sizes = {"fraction_train": min(1.0, (per_round + 0.5) / clients), "min_train_nodes": 1}
    return (sizes if not settings.strategy.args.keys() & sizes.keys() else {}) | {
        "fraction_evaluate": 0.0,
        "min_evaluate_nodes": 0,
        "min_available_nodes": clients,
        "num_sampled_clients": sampled,
        "client_learning_rate": settings.client.lr,
    }


def _check_evaluation(args: Mapping[str, Any]) -> None:
    for key in _NOBODY_EVALUATES:
        if args.get(key):
            raise SettingsError(f"strategy.args.{key} = {args[key]!r}: clients do not evaluate; allowed: 0")


def _gossip(settings: ExperimentSettings) -> Strategy:
    """The strategy of a federation without a server, in which nobody can dictate noise and timesteps."""
    federation, name, args = settings.federation, settings.strategy.name, settings.strategy.args
    if federation.topology == "server":
        raise SettingsError("strategy.name = 'Gossip': needs federation.topology = 'ring', 'regular' or 'complete'")
    where = f"with federation.topology = {federation.topology!r} there is no server"
    if name != "Gossip":
        raise SettingsError(f"strategy.name = {name!r}: {where}; allowed: 'Gossip'")
    if settings.threat == "known":
        raise SettingsError(f"threat = 'known': {where} to dictate noise and timesteps; allowed: 'private'")
    if settings.attack.names and not federation.curious_peers:
        raise SettingsError("federation.curious_peers = []: nobody attacks; name a peer, or set attack.name = 'none'")
    graph = {"topology": federation.topology, "peers": federation.clients, "degree": federation.degree}
    fixed = graph | {"seed": settings.seed, "update": settings.client.update}
    for key, value in args.items():
        if key in fixed:
            raise SettingsError(f"strategy.args.{key}: follows from other settings; allowed: lr")
        if key != "lr":
            raise SettingsError(
                f"strategy.args.{key} = {value!r}: unknown to Gossip; allowed: lr{nearest(key, ['lr'])}"
            )
    keys = {"topology": "federation.topology", "peers": "federation.clients", "degree": "federation.degree"}
    with _as_setting_errors(settings, keys):
        return build_strategy(name, fixed | args)


@contextmanager
def _as_setting_errors(settings: ExperimentSettings, keys: Mapping[str, str]) -> Iterator[None]:
    """Turn a StrategyError into a SettingsError; ``keys`` maps arguments to settings other than ``strategy.args``."""
    try:
        yield
    except ArgumentError as error:
        key = keys.get(error.argument, f"strategy.args.{error.argument}")
        way_out = ", or client.update = 'weights'" if error.argument == "strategy" else ""
        raise SettingsError(f"{key} {error.text}{way_out}") from error
    except StrategyError as error:
        given = f"strategy.args = {settings.strategy.args}: " if settings.strategy.args else ""
        raise SettingsError(f"strategy.name = {settings.strategy.name!r}: {given}{error}") from error


def _check_layers(settings: ExperimentSettings, strategy: Strategy, trained: set[int], defence: Defence) -> None:
    """Refuse a strategy with a layer that cannot work with the replies: too few, summed, or without its metric."""
    for layer in layers(strategy):
        kind = type(layer).__name__
        if defence.sum_only and isinstance(layer, Gossip):
            where = f"with federation.topology = {settings.federation.topology!r} there is no server"
            raise SettingsError(f"defence.name = {settings.defence.name!r}: {where} to see a sum; choose another one")
        if defence.sum_only and isinstance(layer, _NEEDS_EVERY_UPDATE):
            raise SettingsError(
                f"defence.name = {settings.defence.name!r}: the server sees a sum, but {kind} needs every client's "
                "update; allowed: FedAvg and what else takes their mean"
            )
        for key, problem in (*_unknown_metrics(layer), *_wrong_numbers(layer, trained)):
            by_default = "" if key in settings.strategy.args else " (by default)"
            raise SettingsError(f"strategy.args.{key} = {getattr(layer, key)!r}{by_default}: {kind} {problem}")


def _check_effect(settings: ExperimentSettings, strategy: Strategy) -> None:
    """Refuse a number among the arguments that no layer of the strategy keeps, or that Flower takes for another one."""
    for key, value in settings.strategy.args.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if key == "fraction_train" and not 0 <= value <= 1:
            raise SettingsError(f"strategy.args.{key} = {value!r}: allowed: 0 to 1")
        kept = {type(layer).__name__: getattr(layer, key) for layer in layers(strategy) if hasattr(layer, key)}
        if kept and value not in kept.values():
            name, instead = next(iter(kept.items()))
            raise SettingsError(f"strategy.args.{key} = {value!r}: has no effect, {name} sets {instead!r}")


def _unknown_metrics(layer: Strategy) -> Iterator[tuple[str, str]]:
    for key in ("weighted_by_key", "train_loss_key"):
        if getattr(layer, key, NUM_EXAMPLES) not in (NUM_EXAMPLES, TRAIN_LOSS):
            yield key, f"finds no such metric in a client's reply; allowed: {NUM_EXAMPLES!r}, {TRAIN_LOSS!r}"


def _wrong_numbers(layer: Strategy, trained: set[int]) -> Iterator[tuple[str, str]]:
    """Arguments of a layer that do not suit the number of clients in a round, each with the reason."""
    if not trained:
        return
    fewest = min(trained)
    per_round = f"federation.clients_per_round = {fewest}"
    if isinstance(layer, flower.Bulyan | flower.MultiKrum):
        malicious = layer.num_malicious_nodes
        # Bulyan: arXiv 1802.07927. Krum (arXiv 1703.02757) compares an update with its n - f - 2 nearest.
        needed = 4 * malicious + 3 if isinstance(layer, flower.Bulyan) else malicious + 3
        if malicious < 0:
            yield "num_malicious_nodes", "needs at least 0"
        elif fewest < needed and (malicious or isinstance(layer, flower.Bulyan)):
            yield "num_malicious_nodes", f"needs at least {needed} clients in a round, {per_round}"
    if isinstance(layer, flower.MultiKrum) and not 1 <= layer.num_nodes_to_select <= fewest:
        yield "num_nodes_to_select", f"selects 1 to {fewest} clients, {per_round}"
    if isinstance(layer, flower.FedTrimmedAvg) and layer.beta > 0 and int(layer.beta * fewest) == 0:
        trims = f", or {math.ceil(1000 / fewest) / 1000:g} to below 0.5" if fewest > 2 else ""
        yield "beta", f"trims nobody's values, as FedAvg does, {per_round}; allowed: 0{trims}"
    if len(trained) == 1 and getattr(layer, "num_sampled_clients", fewest) != fewest:
        yield "num_sampled_clients", f"is set for another number of clients, {per_round}; allowed: {fewest}"
