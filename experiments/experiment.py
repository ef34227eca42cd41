"""What a run starts from: everything that can be wrong with its settings is found here, before anything is written."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp.strategy import Strategy
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from attacks.model_inversion.registry import INVERSIONS
from attacks.observation import DefenceDisclosure
from attacks.registry import ATTACKS, create
from experiments.aggregation import choose_strategy
from experiments.captures import check_captures, describe_captures
from experiments.checkpoint import find_checkpoint, load_checkpoint
from experiments.leakage import check_metrics
from experiments.priors import check_priors
from experiments.public_images import public_images
from experiments.settings import NO_INVERSION, ExperimentSettings, InversionSettings
from experiments.utility import Utility
from fl_sim.checkpoint import Checkpoint
from fl_sim.classification import ClassificationTask
from fl_sim.client_app import check_images
from fl_sim.config import NO_CHECKPOINT, ClientSettings, DataSettings, ModelSettings, SettingsError
from fl_sim.defences import registry
from fl_sim.defences.defence import Defence
from fl_sim.diffusion import KNOWN_NETWORKS, DiffusionTask, read_network_config, scheduler_config
from fl_sim.draws import derive_seed
from fl_sim.errors import first_error, nearest, plugged_in
from fl_sim.files import write_atomically
from fl_sim.images.classes import count_classes
from fl_sim.images.description import describe_images
from fl_sim.images.pixels import MODES
from fl_sim.images.sources import list_images
from fl_sim.network import (
    FACTORY,
    LORA,
    ConfigError,
    LocalOptimizer,
    LoRA,
    adapt,
    build_model,
    count_parameters,
    factory_path,
    in_channels,
    matching_names,
    outline,
    trainable_names,
    trust,
    unet_config,
)
from fl_sim.task import Task
from fl_sim.wire import Recipe


@dataclass(frozen=True)
class Experiment:
    """A run that can start: settings, initial weights, how clients train and defend, how the server aggregates.

    ``stored_as``: in which type the checkpoint holds the weights; here they are float32. ``public``: the images
    [M,C,H,W] in [-1, 1] that a model inversion has; None where there is none. ``priors``: a line on each attack's.
    """

    settings: ExperimentSettings
    weights: dict[str, Tensor]
    recipe: Recipe
    defence: Defence
    strategy: Strategy
    stored_as: str = "float32"
    public: Tensor | None = None
    priors: tuple[str, ...] = ()

    def disclosure(self) -> DefenceDisclosure | None:
        """What the attacker knows of how clients protect their updates; None if nothing."""
        with plugged_in(f"defence {self.settings.defence.name!r}"):
            known = self.defence.disclosure(self.recipe) if self.settings.attack.knows_defence else {}
        return DefenceDisclosure(**known) if known else None

    def with_base(self, path: Path) -> "Experiment":
        """The same, with the whole initial model in the file ``path`` where clients train and send a part of it."""
        if not self.recipe.partial:
            return self
        write_atomically(path, lambda file: save_file(self.weights, file))
        return replace(self, recipe=self.recipe.model_copy(update={"base": str(path.resolve())}))

    @property
    def travelling_weights(self) -> dict[str, Tensor]:
        """The initial weights that are sent: all, or those that clients train where they have the others already."""
        if self.recipe.base is None:
            return self.weights
        return {name: self.weights[name] for name in self.recipe.trained_names()}

    def describe(self) -> list[str]:
        """What the run is going to do: a line or two each for the model, the images, the rounds and the attacks."""
        settings, recipe = self.settings, self.recipe
        federation, client, attack, defence = settings.federation, settings.client, settings.attack, settings.defence
        inversion = settings.inversion
        model = "an untrained network" if settings.model.checkpoint == NO_CHECKPOINT else settings.model.checkpoint
        classes = f", {recipe.task.num_classes} classes" if isinstance(recipe.task, ClassificationTask) else ""
        stored = "" if self.stored_as == "float32" else f", stored in {self.stored_as}, trained in float32"
        part = f", of which {len(recipe.trained_names())} tensors are trained" if recipe.partial else ""
        steps = f"{client.epochs} epochs" if client.epochs else f"{client.local_steps} local steps"
        rounded = "" if client.dtype == "float32" else f", rounded to {client.dtype}"
        update = "the gradient" if client.update == "gradient" else f"the weights after {steps} of {client.optimizer}"
        lines = [
            f"model: {model}, {count_parameters(self.weights.values()):,} parameters{classes}{stored}{part}",
            *describe_images(settings),
            f"rounds: {federation.rounds}, in each of which {federation.clients_per_round or 'some'} of "
            f"{federation.clients} clients send {update} at batch size {recipe.batch_size}{rounded}; "
            f"strategy: {settings.strategy.name}",
        ]
        if defence.name != "none":
            lines.append(f"defence: {defence.name}, {'' if attack.knows_defence else 'un'}known to the attacker")
        later = " later, captures only for now" if attack.names and not attack.in_run else ""
        lines.append(f"attacks: {', '.join(attack.names) or 'none'}{later}; threat: {settings.threat}")
        if attack.names and (kept := describe_captures(attack)):
            lines.append(kept)
        lines.extend(self.priors)
        if self.public is not None:
            often = f"every {inversion.every} rounds and " if inversion.every else ""
            lines.append(
                f"model inversion: {inversion.name} of the global weights {often}after the last round, with "
                f"{len(self.public)} public images"
            )
        return lines


def prepare(settings: ExperimentSettings) -> Experiment:
    """Build what a run needs from its resolved settings.

    Raises:
        SettingsError, StrategyError, AttackError, ConfigError: naming the setting that is wrong and what is allowed.
    """
    _check_attacks(settings)
    _check_inversion_arguments(settings.inversion)
    check_metrics(settings.metrics)
    _trust_own_factory(settings.model)
    checkpoint = _starting_checkpoint(settings)
    recipe = _recipe(settings, checkpoint)
    _check_network(settings, recipe)
    check_images(settings, recipe, Utility(settings, recipe).images_needed)
    defence = registry.create(settings.defence.name, settings.defence.args, "defence")
    with plugged_in(f"defence {settings.defence.name!r}"):
        defence.check(recipe)
    _check_trainable(recipe)
    settings, strategy = choose_strategy(settings, checkpoint.weights, recipe, defence)
    public = _public_images(settings, recipe)
    priors = check_priors(settings, recipe.image_shape[0])
    weights = checkpoint.weights
    experiment = Experiment(settings, weights, recipe, defence, strategy, checkpoint.dtype, public, priors)
    check_captures(experiment)
    return experiment


def _check_network(settings: ExperimentSettings, recipe: Recipe) -> None:
    try:
        recipe.task.check(recipe.model, recipe.image_shape)
    except ConfigError as error:
        size = _as_typed(settings.data.image_size)
        raise SettingsError(f"the model on images of data.image_size = {size}: {error}") from error


def _public_images(settings: ExperimentSettings, recipe: Recipe) -> Tensor | None:
    """What a model inversion is given beside the global weights, its settings checked; None where there is none."""
    inversion = settings.inversion
    if inversion.name == NO_INVERSION:
        return None
    assert isinstance(recipe.task, ClassificationTask)
    chosen = INVERSIONS.create(inversion.name, inversion.arguments, "inversion")
    try:
        chosen.check(recipe.task.num_classes, recipe.image_shape)
    except ConfigError as error:
        raise SettingsError(f"inversion.args.{inversion.name}: {error}") from error
    return public_images(settings.data, recipe.image_shape[0])


def build_recipe(settings: ExperimentSettings) -> Recipe:
    """How clients train under these settings, which may be anyone's: no network of a factory is built.

    Raises:
        SettingsError: if the checkpoint that they name cannot be read.
    """
    if settings.model.factory is None:
        return _recipe(settings, _starting_checkpoint(settings))
    adapters = {LORA: _adapters(settings).model_dump(mode="json")} if settings.client.lora.rank else {}
    return _recipe(settings, _untrained(settings, {}, _network_config(settings) | adapters))


def _trust_own_factory(model: ModelSettings) -> None:
    """Trust the factory that somebody named in the settings of a run of theirs."""
    if model.factory is not None:
        try:
            trust([model.factory])
        except ConfigError as error:
            raise SettingsError(f"model.factory = {error}") from error


def _recipe(settings: ExperimentSettings, checkpoint: Checkpoint) -> Recipe:
    client = settings.client
    optimizer = LocalOptimizer(
        name=client.optimizer,
        lr=client.lr,
        momentum=client.momentum,
        betas=client.betas,
        eps=client.eps,
        weight_decay=client.weight_decay,
        max_grad_norm=client.max_grad_norm,
    )
    return Recipe(
        model=checkpoint.model,
        task=_as_prescribed(checkpoint.task, client),
        image_shape=(_channels(settings.data, checkpoint.model), *settings.data.height_width),
        update=client.update,
        batch_size=client.batch_size * client.gradient_accumulation,
        local_steps=client.local_steps,
        epochs=client.epochs,
        optimizer=optimizer if client.update == "weights" else None,
        lr_schedule=client.lr_schedule,
        rounds=settings.federation.rounds,
        noise_seed=settings.seed if settings.threat == "known" else None,
        label_dropout=client.label_dropout,
        trainable=client.trainable,
        horizontal_flip=client.horizontal_flip,
        gradient_accumulation=client.gradient_accumulation,
        ema_decay=client.ema_decay,
        dtype=client.dtype,
    )


def _as_prescribed(task: Task, client: ClientSettings) -> Task:
    """The task with what the settings of [client] say of its loss."""
    if isinstance(task, DiffusionTask):
        return DiffusionTask.on(task.scheduler, client.min_snr_gamma, client.noise_offset)
    return task


def _channels(data: DataSettings, model: Mapping[str, Any]) -> int:
    """The channels of the images: those that the network takes in, with which ``data.channels`` must agree.

    A factory's network does not say; it gets what ``data.channels`` says, else RGB.
    """
    if FACTORY in model:
        return data.channels or 3
    taken = in_channels(model)
    if taken not in MODES:
        raise SettingsError(f"the model takes images of {taken} channels; allowed: 1 (grey) or 3 (RGB)")
    if data.channels not in (None, taken):
        raise SettingsError(
            f"data.channels = {data.channels}: the network takes images of {taken}; allowed: that, or another network"
        )
    return taken


def _check_trainable(recipe: Recipe) -> None:
    names = trainable_names(recipe.model)
    for pattern in recipe.trainable:
        if not matching_names(names, [pattern]):
            raise SettingsError(
                f"client.trainable = {list(recipe.trainable)}: {pattern!r} matches no parameter; some are "
                f"{', '.join(names[::10])}"
            )


def _starting_checkpoint(settings: ExperimentSettings) -> Checkpoint:
    """The model that the settings name, with the adapters that clients are to train, if any."""
    checkpoint, lora = _plain_checkpoint(settings), settings.client.lora
    if lora.rank == 0:
        return checkpoint
    if LORA in checkpoint.model:
        raise SettingsError(
            f"client.lora.rank = {lora.rank}: the checkpoint has adapters, which are trained; allowed: 0"
        )
    fields = _adapters(settings)
    model = checkpoint.build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "adapters"))
        try:
            weights = adapt(model, fields).state_dict()
        except ConfigError as error:
            raise SettingsError(f"client.lora.targets = {list(lora.targets)}: {error}") from error
    return replace(checkpoint, weights=weights, model=checkpoint.model | {LORA: fields.model_dump(mode="json")})


def _adapters(settings: ExperimentSettings) -> LoRA:
    lora = settings.client.lora
    return LoRA(rank=lora.rank, alpha=lora.alpha or lora.rank, targets=lora.targets)


def _plain_checkpoint(settings: ExperimentSettings) -> Checkpoint:
    """The checkpoint that the settings name, or a fresh model with weights drawn from the public seed."""
    model = settings.model
    if model.checkpoint == NO_CHECKPOINT:
        return _fresh_model(settings)
    checkpoint = load_checkpoint(find_checkpoint(model.checkpoint))
    if checkpoint.task.task != settings.task:
        raise SettingsError(
            f"model.checkpoint = {model.checkpoint!r}: it was trained for task = {checkpoint.task.task!r}; allowed: "
            f"that task, or a checkpoint of {settings.task!r}"
        )
    # The settings are what the run's records say, so they must not say anything else than what is trained.
    if checkpoint.image_shape is not None:
        sides = checkpoint.image_shape[1:]
        _check_size(model.checkpoint, sides)
        if settings.data.height_width != sides:
            _agree("data.image_size", settings.data.image_size, sides[0] if sides[0] == sides[1] else sides)
    for name, trained in _network_settings(checkpoint).items():
        if name in model.model_fields_set:
            _agree(f"model.{name}", getattr(model, name), trained)
    return checkpoint


def _check_size(checkpoint: str, sides: tuple[int, int]) -> None:
    """Refuse a checkpoint for images of a size that the settings do not allow: nothing could agree with it."""
    try:
        DataSettings(image_size=sides)
    except ValidationError as error:
        raise SettingsError(
            f"model.checkpoint = {checkpoint!r}: it takes images of {sides[0]}x{sides[1]} pixels, and of "
            f"data.image_size the {first_error(error)['msg']}"
        ) from error


def _network_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the settings of ``[model]`` would have to be for this network and what it was trained for."""
    if isinstance(checkpoint.task, ClassificationTask):
        return {"classifier": checkpoint.model["_class_name"], "classes": checkpoint.task.num_classes}
    network: Any = outline(checkpoint.model).config
    schedule = checkpoint.task.noise_schedule().config
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
    model_config = _network_config(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "weights"))
        try:
            weights = build_model(model_config).state_dict()
        except ConfigError as error:
            raise SettingsError(f"{_network_named(settings)}: {error}") from error
    return _untrained(settings, weights, model_config)


def _untrained(settings: ExperimentSettings, weights: dict[str, Tensor], model: dict[str, Any]) -> Checkpoint:
    """A network that nobody has trained for the task of the settings yet."""
    return Checkpoint(weights, model, _fresh_task(settings), {})


def _fresh_task(settings: ExperimentSettings) -> Task:
    if settings.task == "diffusion":
        return DiffusionTask.on(scheduler_config(settings.model.num_train_timesteps, settings.model.prediction_type))
    there = count_classes(list_images(settings.data))
    return ClassificationTask(num_classes=settings.model.classes or there)


def _network_config(settings: ExperimentSettings) -> dict[str, Any]:
    """The configuration of the network that ``[model]`` describes, for images of ``data.image_size``."""
    shape, size = settings.model, settings.data.image_size
    if shape.factory is not None:
        return {FACTORY: factory_path(shape.factory), **shape.factory_args}
    if settings.task == "classification":
        return _classifier_config(settings)
    if shape.config is None:
        described = unet_config(
            size,
            channels=settings.data.channels or in_channels(shape.unet),
            block_out_channels=shape.unet.get("block_out_channels", shape.block_out_channels),
            layers_per_block=shape.layers_per_block,
            norm_num_groups=shape.norm_num_groups,
            attention=shape.attention,
        )
    else:
        described = _known_or_read(shape.config)
    return described | shape.unet | {"sample_size": _as_typed(size)}


def _classifier_config(settings: ExperimentSettings) -> dict[str, Any]:
    fixed = {
        "_class_name": settings.model.classifier,
        "num_classes": settings.model.classes or count_classes(list_images(settings.data)),
        "image_size": list(settings.data.height_width),
        "in_channels": settings.data.channels or 3,
    }
    for key, value in settings.model.classifier_args.items():
        if key in fixed or key.startswith("_"):
            raise SettingsError(
                f"model.classifier_args.{key} = {value!r}: follows from other settings; allowed: unset, and "
                "model.classifier, model.classes, data.image_size, data.channels"
            )
    return fixed | settings.model.classifier_args


def _known_or_read(name: str) -> dict[str, Any]:
    """The known network of that name, or the one in a ``config.json`` as diffusers saves it."""
    if name in KNOWN_NETWORKS:
        return dict(KNOWN_NETWORKS[name])
    if Path(name).suffix != ".json":
        known = ", ".join(KNOWN_NETWORKS)
        raise SettingsError(
            f"model.config = {name!r}: unknown; allowed: {known}, or a FILE.json{nearest(name, KNOWN_NETWORKS)}"
        )
    try:
        return read_network_config(Path(name))
    except ConfigError as error:
        raise SettingsError(f"model.config = {name!r}: {error}") from error


def _network_named(settings: ExperimentSettings) -> str:
    """The settings that describe the network, for a message about it."""
    shape = settings.model
    given: dict[str, Any] = {"unet": shape.unet} if shape.unet else {}
    if shape.factory is not None:
        given |= {"factory": shape.factory}
    elif settings.task == "classification":
        given |= {"classifier": shape.classifier, "classifier_args": shape.classifier_args}
    elif shape.config is None:
        given |= {"block_out_channels": list(shape.block_out_channels), "norm_num_groups": shape.norm_num_groups}
    else:
        given |= {"config": shape.config}
    return ", ".join(f"model.{key} = {value!r}" for key, value in given.items())


def _check_attacks(settings: ExperimentSettings) -> None:
    attack = settings.attack
    called: dict[str, str] = {}
    for name, arguments in attack.arguments.items():
        own = create(name, arguments, "attack").name
        if called.setdefault(own, name) != name:
            raise SettingsError(
                f"attack.name = {_as_typed(attack.name)!r}: {called[own]!r} and {name!r} are both called {own!r} in "
                "the tables; give one of the classes another name"
            )
    for name in attack.args.keys() - set(attack.names):
        _check_known("attack", name, {*ATTACKS.names(), *attack.names}, "attack")
        raise SettingsError(
            f"attack.args.{name}: attack.name = {_as_typed(attack.name)!r} does not name it; allowed: "
            f"attack.args of {', '.join(attack.names) or 'no attack'}, or name it in attack.name, which may be a list"
        )


def _check_inversion_arguments(inversion: InversionSettings) -> None:
    for name in inversion.args.keys() - {inversion.name}:
        _check_known("inversion", name, {*INVERSIONS.names()}, "model inversion")
        raise SettingsError(
            f"inversion.args.{name}: inversion.name = {inversion.name!r} does not name it; allowed: inversion.args of "
            "the one that is named"
        )


def _check_known(table: str, name: str, known: Collection[str], kind: str) -> None:
    """Refuse arguments of a name that there is not."""
    if name not in known:
        available = ", ".join(sorted(known))
        raise SettingsError(f"{table}.args.{name}: unknown {kind}; available: {available}{nearest(name, known)}")


def _as_typed(value: Any) -> Any:
    """A setting's value as TOML has it."""
    return list(value) if isinstance(value, tuple) else value
