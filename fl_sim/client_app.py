"""The honest client: it draws its images, noise and timesteps in private, trains, and replies with one update."""

import os
from collections.abc import Iterable, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor, nn

from fl_sim import network
from fl_sim.config import Settings, SettingsError, flower_run_directory
from fl_sim.defences import registry
from fl_sim.defences.defence import Defence, private_generator
from fl_sim.draws import Draw, derive_seed, draw_flips, draw_image_indices, drop_labels
from fl_sim.images.classes import check_sound_classes, class_numbers
from fl_sim.images.image_set import ImageSet
from fl_sim.images.partition import partition
from fl_sim.images.sources import list_images
from fl_sim.settings_file import load_settings, read_toml
from fl_sim.task import Task
from fl_sim.wire import (
    ARRAYS,
    CLIENT,
    CLIPPING_NORM,
    CONFIG,
    PARTITION,
    RECIPE,
    ROUND,
    Recipe,
    dictated_draw,
    pack_reply,
    round_reply,
    whole_model,
)

CLIENT_CONFIG = "client-config"
"""Key of a SuperNode's node config: the path of the client's own config.toml, for clients on other machines."""


class BatchGradient(Protocol):
    """Computes what a client trains with."""

    def __call__(self, model: nn.Module, task: Task, batch: Draw, /) -> tuple[dict[str, Tensor], float]:
        """The gradient of a batch by parameter, and its loss."""


def build_client_app(settings: Settings | None = None) -> ClientApp:
    """The ClientApp of a federation with these (resolved) settings.

    Without settings, as under ``flwr run``, each client reads the config.toml that its node config names, or else the
    one that the server wrote into the run directory.
    """
    app = ClientApp(mods=[_round_as_prescribed, _clip_as_dictated])

    def settings_of(context: Context) -> Settings:
        return settings or _read_settings(_config_path(context))

    def protect(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        chosen = settings_of(context)
        return _defence(chosen).mod(_private_seed(chosen))(message, context, call_next)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({CLIENT: ConfigRecord({PARTITION: _partition_index(context)})}), reply_to=message)

    @app.train(mods=[protect])
    def train(message: Message, context: Context) -> Message:
        return _train(message, _partition_index(context), settings_of(context))

    return app


def private_draw(settings: Settings, recipe: Recipe, client: int, server_round: int) -> Draw:
    """What ``client`` trains on in a round, on the CPU.

    N = batch size x local steps, and step k takes the k-th batch. All batches are of one size: the last batch of an
    epoch is filled up from the next. With ``recipe.horizontal_flip`` images are mirrored at random, as the private seed
    says. In the known threat model the server dictates noise and timesteps. The function is pure, so that the evaluator
    can repeat the draw.

    Raises:
        SettingsError: if ``client.seed`` is not resolved, or the images cannot be listed or read.
    """
    seed = _private_seed(settings)
    held = partition(settings.data, settings.federation.clients, seed)[client]
    samples = recipe.samples(len(held))
    listed = list_images(settings.data)
    drawn = _drawn(listed, seed, held, samples, client, server_round)
    images = listed.decode(drawn, recipe.image_shape[0])
    if recipe.horizontal_flip:
        mirrored = draw_flips(derive_seed(seed, "flips", client, server_round), samples)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    labels = _labels(settings, recipe, drawn, derive_seed(seed, "label-dropout", client, server_round))
    if recipe.noise_seed is not None:
        return Draw(images, *dictated_draw(recipe.of_samples(samples), client, server_round), labels)
    return Draw(images, *recipe.draw_noise(derive_seed(seed, "noise", client, server_round), samples), labels)


def _labels(settings: Settings, recipe: Recipe, drawn: Sequence[int], seed: int) -> Tensor | None:
    """What training is told of the classes of the images drawn; None where it uses no labels."""
    rows = recipe.task.label_count(recipe.model)
    if rows is None and recipe.label_dropout:
        raise SettingsError(
            f"client.label_dropout = {recipe.label_dropout}: the network takes no class labels; allowed: 0, or a "
            "network with num_class_embeds"
        )
    if rows is None:
        return None
    numbers = class_numbers(list_images(settings.data), rows, recipe.task.labels_named, recipe.label_dropout > 0)
    labels = torch.tensor([numbers[index] for index in drawn])
    return drop_labels(labels, seed, recipe.label_dropout, null=rows - 1) if recipe.label_dropout else labels


def check_images(settings: Settings, recipe: Recipe, others: Iterable[int] = ()) -> None:
    """Check that a run with these (resolved) settings can read its images, before it starts.

    It reads the header of every image of a folder, and decodes the images that a client draws in any round and
    ``others``, the indices of those that the evaluator will decode. Broken images are noted in the set of images. Where
    training uses labels every image must have a class.

    Raises:
        SettingsError: naming the image, or why there are none to draw from.
    """
    images, seed = list_images(settings.data), _private_seed(settings)
    _labels(settings, recipe, [], seed)
    images.identify_all()
    needed, known = set(filter(images.is_sound, others)), set[tuple[int, ...]]()
    for client, held in enumerate(partition(settings.data, settings.federation.clients, seed)):
        if held in known:  # many clients may hold the same images
            continue
        samples = recipe.samples(len(held))
        for server_round in range(1, settings.federation.rounds + 1):
            if (needed | images.broken.keys()).issuperset(held) and not needed.isdisjoint(held):
                known.add(held)
                break
            needed.update(_drawn(images, seed, held, samples, client, server_round))
    if recipe.task.task == "classification":
        check_sound_classes(images)


def _drawn(images: ImageSet, seed: int, held: Sequence[int], samples: int, client: int, server_round: int) -> list[int]:
    """Which images a client draws in a round, as indices into all images; broken ones are passed over.

    Raises:
        SettingsError: if all that it holds are broken.
    """
    image_seed, dealt = derive_seed(seed, "images", client, server_round), samples
    while True:
        order = (held[index] for index in draw_image_indices(image_seed, dealt, len(held)).tolist())
        drawn = list(islice(filter(images.is_sound, order), samples))
        if len(drawn) == samples:
            return drawn
        if not drawn and dealt >= len(held):
            raise SettingsError(f"client {client} holds no image that can be read: {images.broken[held[0]]}")
        dealt *= 2


def plain_gradient(model: nn.Module, task: Task, batch: Draw) -> tuple[dict[str, Tensor], float]:
    """The gradient of a batch by parameter, and its loss, without any defence."""
    return task.gradient_and_loss(model, batch.images, *batch[1:])


def local_training(
    recipe: Recipe,
    weights: dict[str, Tensor],
    draw: Draw,
    device: str,
    batch_gradient: BatchGradient = plain_gradient,
    dropout_seed: int = 0,
) -> tuple[dict[str, Tensor], float]:
    """What one client sends, by parameter, and its mean training loss, from a draw that ``private_draw`` makes.

    With ``recipe.update`` "gradient" it sends the mean gradient over all N samples; with "weights", the weights after
    ``recipe.local_steps`` steps of the recipe's optimiser, or their moving average: the whole state, or the trained
    parameters where only these travel. A step is ``recipe.gradient_accumulation`` batches.
    Parameters that ``batch_gradient`` leaves out are not trained. Dropout draws its masks from ``dropout_seed``: the
    same on every run on one device, but a CPU and a GPU draw different ones. Torch's global generators keep their
    state.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        model = network.build_model(recipe.model)
        model.load_state_dict(weights)
        network.set_training_mode(model.to(device))
        trained = set(recipe.trained_names())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        torch.manual_seed(dropout_seed)
        if recipe.update == "weights":
            return _local_steps(model, recipe, draw.to(device), batch_gradient)
        gradient, loss = _mean_gradient(model, recipe, draw.to(device), batch_gradient)
        return {name: value.cpu() for name, value in gradient.items()}, loss


def _local_steps(
    model: nn.Module, recipe: Recipe, draw: Draw, batch_gradient: BatchGradient
) -> tuple[dict[str, Tensor], float]:
    if recipe.optimizer is None:
        raise ValueError("recipe.optimizer is not set; clients that send weights need one")
    parameters = network.trainable_parameters(model)
    sent = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = recipe.optimizer.build(parameters.values())
    average, losses = dict(sent), []
    decays = network.ema_decays(recipe.ema_decay, len(draw.images) // recipe.batch_size)
    for decay, batch in zip(decays, draw.batches(recipe.batch_size), strict=True):
        gradient, loss = _mean_gradient(model, recipe, batch, batch_gradient)
        for name, parameter in parameters.items():
            parameter.grad = gradient.get(name)
            if parameter.grad is not None and recipe.optimizer.proximal_mu:
                parameter.grad += recipe.optimizer.proximal_mu * (parameter.detach() - sent[name])
        if recipe.optimizer.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters.values(), recipe.optimizer.max_grad_norm)
        optimizer.step()
        losses.append(loss)
        average = {name: value.detach().lerp(average[name], decay) for name, value in parameters.items()}
    after = average if recipe.partial else model.state_dict() | average
    return {name: value.cpu() for name, value in after.items()}, sum(losses) / len(losses)


def _mean_gradient(
    model: nn.Module, recipe: Recipe, draw: Draw, batch_gradient: BatchGradient
) -> tuple[dict[str, Tensor], float]:
    """Gradient and loss of a step: their means over the batches of which it accumulates the gradients."""
    batches = draw.batches(len(draw.images) // recipe.gradient_accumulation)
    found = [batch_gradient(model, recipe.task, batch) for batch in batches]
    if len(found) == 1:
        return found[0]
    gradients, losses = zip(*found, strict=True)
    mean = {name: torch.stack([gradient[name] for gradient in gradients]).mean(dim=0) for name in gradients[0]}
    return mean, sum(losses) / len(losses)


def _round_as_prescribed(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Round what is sent to the recipe's type, after whatever a defence made of it."""
    reply = call_next(message, context)
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    dtype = Recipe.from_config(config).dtype if RECIPE in config else "float32"
    if dtype != "float32" and not reply.has_error():
        round_reply(reply.content, dtype)
    return reply


def _clip_as_dictated(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Clip the update if the server sends a clipping norm: the clients' part in Flower's differential privacy."""
    dictated = any(CLIPPING_NORM in config for config in message.content.config_records.values())
    return adaptiveclipping_mod(message, context, call_next) if dictated else call_next(message, context)


def _train(message: Message, client: int, settings: Settings) -> Message:
    _compute_repeatably()
    config = message.content.config_records[CONFIG]
    server_round = int(str(config[ROUND]))
    recipe = Recipe.from_config(config).in_round(server_round)
    if settings.data.height_width != recipe.image_shape[1:]:
        asked, own = ("x".join(map(str, sides)) for sides in (recipe.image_shape[1:], settings.data.height_width))
        raise SettingsError(f"data.image_size: the server trains on images of {asked} pixels, this client has {own}")
    if settings.model.factory is not None:
        network.trust([settings.model.factory])  # the client's own settings name it, not the server's message
    draw = private_draw(settings, recipe, client, server_round)
    weights = whole_model(recipe, message.content.array_records[ARRAYS].to_torch_state_dict())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    private_seed = _private_seed(settings)
    generator = private_generator(private_seed, client, server_round, "training")
    batch_gradient = partial(_defence(settings).batch_gradient, generator=generator)
    masks = derive_seed(private_seed, "dropout", client, server_round)
    update, loss = local_training(recipe, weights, draw, device, batch_gradient, masks)
    labels = draw.labels if recipe.reveals_labels else None
    return Message(pack_reply(update, len(draw.images), loss, client, device, labels), reply_to=message)


def _defence(settings: Settings) -> Defence:
    return registry.create(settings.defence.name, settings.defence.args)


def _private_seed(settings: Settings) -> int:
    if settings.client.seed is None:
        raise SettingsError("client.seed is not set; a client draws only from resolved settings")
    return settings.client.seed


def _compute_repeatably() -> None:
    """The same update, bit for bit, on every run: one thread, full float32, deterministic kernels."""
    torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _partition_index(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _config_path(context: Context) -> Path:
    own = context.node_config.get(CLIENT_CONFIG)
    return Path(str(own)) if own else flower_run_directory(context) / "config.toml"


@cache
def _read_settings(path: Path) -> Settings:
    """The federation's settings in a run's config.toml; a client ignores the other sections."""
    tree = read_toml(path)
    return load_settings(Settings, {key: value for key, value in tree.items() if key in Settings.model_fields})


app = build_client_app()
