"""What a run starts from: everything that can be wrong with its settings is found here, before anything is written."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from attacks.attack import available, create
from experiments.checkpoint import BUNDLED, Checkpoint, load_checkpoint
from experiments.settings import ExperimentSettings
from experiments.utility import Utility
from fl_sim.client_app import check_images
from fl_sim.config import NO_CHECKPOINT, SettingsError, nearest
from fl_sim.defences import registry
from fl_sim.defences.defence import Defence
from fl_sim.diffusion import (
    LORA,
    LocalOptimizer,
    LoRA,
    adapt,
    build_model,
    build_scheduler,
    check_network,
    scheduler_config,
    trainable_names,
    unet_config,
)
from fl_sim.draws import derive_seed
from fl_sim.wire import Recipe
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


@dataclass(frozen=True)
class Experiment:
    """A run that can start: settings, initial weights, how clients train and defend, how the server aggregates."""

    settings: ExperimentSettings
    weights: dict[str, Tensor]
    recipe: Recipe
    defence: Defence
    strategy: Strategy


def prepare(settings: ExperimentSettings) -> Experiment:
    """Build what a run needs from its resolved settings.

    Raises:
        SettingsError, StrategyError, AttackError, ConfigError: naming the setting that is wrong and what is allowed.
    """
    _check_attacks(settings)
    strategy = _strategy(settings)
    checkpoint = _starting_checkpoint(settings)
    recipe = _recipe(settings, checkpoint)
    check_network(recipe.model, recipe.scheduler, recipe.image_shape)
    check_images(settings, recipe, Utility(settings, recipe).reference)
    defence = registry.create(settings.defence.name, settings.defence.args)
    defence.check(recipe)
    if defence.sum_only:
        _check_sum_is_enough(settings, strategy)
    _check_trainable(recipe)
    return Experiment(settings, checkpoint.weights, recipe, defence, strategy)


def build_recipe(settings: ExperimentSettings) -> Recipe:
    """How clients train under these settings; SettingsError if the checkpoint they name cannot be read."""
    return _recipe(settings, _starting_checkpoint(settings))


def _recipe(settings: ExperimentSettings, checkpoint: Checkpoint) -> Recipe:
    client = settings.client
    momentum = client.momentum if client.optimizer == "sgd" else 0.0
    optimizer = LocalOptimizer(
        name=client.optimizer, lr=client.lr, momentum=momentum, max_grad_norm=client.max_grad_norm
    )
    return Recipe(
        model=checkpoint.model,
        scheduler=checkpoint.scheduler,
        image_shape=(3, settings.data.image_size, settings.data.image_size),
        update=client.update,
        batch_size=client.batch_size,
        local_steps=client.local_steps,
        epochs=client.epochs,
        optimizer=optimizer if client.update == "weights" else None,
        lr_schedule=client.lr_schedule,
        rounds=settings.federation.rounds,
        noise_seed=settings.seed if settings.threat == "known" else None,
        trainable=client.trainable,
    )


def _check_trainable(recipe: Recipe) -> None:
    if not recipe.trained_names():
        some = ", ".join(trainable_names(recipe.model)[::10])
        raise SettingsError(f"client.trainable = {list(recipe.trainable)}: matches no parameter; some are {some}")


def _starting_checkpoint(settings: ExperimentSettings) -> Checkpoint:
    """The model that the settings name, with the adapters that clients are to train, if any."""
    checkpoint, lora = _plain_checkpoint(settings), settings.client.lora
    if lora.rank == 0:
        return checkpoint
    if LORA in checkpoint.model:
        raise SettingsError(
            f"client.lora.rank = {lora.rank}: the checkpoint has adapters, which are trained; allowed: 0"
        )
    fields = LoRA(rank=lora.rank, alpha=lora.alpha or lora.rank, targets=lora.targets)
    model = build_model(checkpoint.model)
    model.load_state_dict(checkpoint.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "adapters"))
        weights = adapt(model, fields).state_dict()
    return replace(checkpoint, weights=weights, model=checkpoint.model | {LORA: fields.model_dump(mode="json")})


def _plain_checkpoint(settings: ExperimentSettings) -> Checkpoint:
    """The checkpoint that the settings name, or a fresh model with weights drawn from the public seed."""
    model = settings.model
    if model.checkpoint == NO_CHECKPOINT:
        return _fresh_model(settings)
    checkpoint = load_checkpoint(BUNDLED if model.checkpoint == "bundled" else Path(model.checkpoint))
    # The settings are what the run's records say, so they must not say anything else than what is trained.
    if checkpoint.image_size is not None:
        _agree("data.image_size", settings.data.image_size, checkpoint.image_size)
    for name, trained in _network_settings(checkpoint).items():
        if name in model.model_fields_set:
            _agree(f"model.{name}", getattr(model, name), trained)
    return checkpoint


def _network_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the settings of ``[model]`` would have to be for this network and noise schedule."""
    with torch.device("meta"):
        network: Any = build_model(checkpoint.model).config
    schedule = build_scheduler(checkpoint.scheduler).config
    return {
        "prediction_type": schedule.prediction_type,
        "num_train_timesteps": schedule.num_train_timesteps,
        "block_out_channels": tuple(network.block_out_channels),
        "layers_per_block": network.layers_per_block,
        "norm_num_groups": network.norm_num_groups,
        "attention": any("Attn" in block for block in (*network.down_block_types, *network.up_block_types)),
    }


def _agree(key: str, value: Any, trained: Any) -> None:
    if value != trained:
        raise SettingsError(
            f"{key} = {_as_typed(value)!r}: the checkpoint has {_as_typed(trained)!r}; allowed: that, or "
            "model.checkpoint=none"
        )


def _fresh_model(settings: ExperimentSettings) -> Checkpoint:
    shape = settings.model
    model_config = unet_config(
        settings.data.image_size,
        block_out_channels=shape.block_out_channels,
        layers_per_block=shape.layers_per_block,
        norm_num_groups=shape.norm_num_groups,
        attention=shape.attention,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "weights"))
        weights = build_model(model_config).state_dict()
    return Checkpoint(weights, model_config, scheduler_config(shape.num_train_timesteps, shape.prediction_type), {})


def _strategy(settings: ExperimentSettings) -> Strategy:
    """The aggregation that the settings name, in FedSGD where clients send gradients.

    What does not fit together is refused here, before the run: on the way it would end the run, or train nothing.
    """
    name, args = settings.strategy.name, settings.strategy.args
    if name == "Gossip" or settings.federation.topology != "server":
        return _gossip(settings)
    if settings.client.update == "gradient" and name != "FedSGD":
        name, args = "FedSGD", {**args, "inner": name}
    elif settings.client.update == "weights":
        for key, value in (("strategy.name", name), ("strategy.args.inner", args.get("inner"))):
            if value == "FedSGD":
                raise SettingsError(f"{key} = 'FedSGD': takes gradients, but client.update = 'weights'")
    strategy = build_strategy(name, _known_arguments(settings, name, args) | args)
    _check_enough_clients(settings, strategy)
    return strategy


def _gossip(settings: ExperimentSettings) -> Strategy:
    """A federation without a server, where nobody is in a position to dictate anything."""
    federation, name = settings.federation, settings.strategy.name
    if federation.topology == "server":
        raise SettingsError("strategy.name = 'Gossip': needs federation.topology = 'ring', 'regular' or 'complete'")
    where = f"with federation.topology = {federation.topology!r} there is no server"
    if name != "Gossip":
        raise SettingsError(f"strategy.name = {name!r}: {where}; allowed: 'Gossip'")
    if settings.threat == "known":
        raise SettingsError(f"threat = 'known': {where} to dictate noise and timesteps; allowed: 'private'")
    if registry.create(settings.defence.name, settings.defence.args).sum_only:
        raise SettingsError(f"defence.name = {settings.defence.name!r}: {where} to see a sum; choose another defence")
    graph = {"topology": federation.topology, "peers": federation.clients, "degree": federation.degree}
    fixed = graph | {"seed": settings.seed, "update": settings.client.update}
    if taken := sorted(fixed.keys() & settings.strategy.args.keys()):
        raise SettingsError(f"strategy.args.{taken[0]}: follows from other settings; allowed: lr")
    return build_strategy(name, fixed | settings.strategy.args)


def _check_enough_clients(settings: ExperimentSettings, strategy: Strategy) -> None:
    """Bulyan (arXiv 1802.07927) combines nothing below 4 f + 3 replies, f of them malicious."""
    per_round = settings.federation.clients_per_round or settings.federation.clients
    for layer in _layers(strategy):
        if isinstance(layer, flower.Bulyan) and per_round < 4 * layer.num_malicious_nodes + 3:
            raise SettingsError(
                f"federation.clients_per_round = {per_round}: Bulyan with strategy.args.num_malicious_nodes = "
                f"{layer.num_malicious_nodes} needs at least {4 * layer.num_malicious_nodes + 3}"
            )


def _check_sum_is_enough(settings: ExperimentSettings, strategy: Strategy) -> None:
    """Where clients aggregate securely the server has nothing to take a median of, or to clip."""
    for layer in _layers(strategy):
        if isinstance(layer, _NEEDS_EVERY_UPDATE):
            raise SettingsError(
                f"defence.name = {settings.defence.name!r}: the server sees a sum, but {type(layer).__name__} needs "
                "every client's update; allowed: FedAvg and what else takes their mean"
            )


def _layers(strategy: Strategy | None) -> Iterator[Strategy]:
    """A strategy, the one that it wraps, and so on."""
    while strategy is not None:
        yield strategy
        strategy = getattr(strategy, "strategy", None)


def _known_arguments(settings: ExperimentSettings, name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Flower's arguments that follow from other settings, as far as the strategy or the one inside takes them.

    Clients do not evaluate: what they would report tells nothing about leakage.
    """
    clients = settings.federation.clients
    per_round = settings.federation.clients_per_round or clients
    known = {
        "fraction_train": per_round / clients,
        "fraction_evaluate": 0.0,
        "min_train_nodes": per_round,
        "min_evaluate_nodes": 0,
        "min_available_nodes": clients,
        "num_sampled_clients": per_round,
        "client_learning_rate": settings.client.lr,
    }
    classes = [strategy_class(name)]
    if "strategy" in inspect.signature(classes[0]).parameters:
        classes.append(strategy_class(args.get("inner", "FedAvg")))
    taken = {parameter for cls in classes for parameter in inspect.signature(cls).parameters}
    return {key: value for key, value in known.items() if key in taken}


def _check_attacks(settings: ExperimentSettings) -> None:
    attack = settings.attack
    for name, arguments in attack.arguments.items():
        create(name, arguments)
    for name in attack.args.keys() - set(attack.names):
        if name not in available():
            known = sorted({*available(), *attack.names})
            raise SettingsError(
                f"attack.args.{name}: unknown attack; available: {', '.join(known)}{nearest(name, known)}"
            )
        raise SettingsError(
            f"attack.args.{name}: attack.name = {_as_typed(attack.name)!r} does not name it; allowed: "
            f"attack.args of {', '.join(attack.names) or 'no attack'}, or name it in attack.name, which may be a list"
        )


def _as_typed(value: Any) -> Any:
    """A setting's value as TOML has it."""
    return list(value) if isinstance(value, tuple) else value
