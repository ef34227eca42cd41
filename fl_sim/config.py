"""The federation's settings: one typed, frozen tree; unknown keys are refused.

Every key is described in docs/settings.md. A user's mistake is one line: the key, its value and what is allowed.
"""

import json
import os
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from fl_sim.errors import UserError
from fl_sim.setting_layers import Tree, Void, drop_arguments, fill_in, look_up, remove

if TYPE_CHECKING:
    from flwr.app import Context

SEED_BITS = 63

MOST_SAMPLES = 1_000_000
"""Images that a client draws in a round, all at once: 16x16 RGB, they and their noise take 6 GB."""

NO_CHECKPOINT = "none"
"""The value of ``model.checkpoint`` for a network that nobody has trained."""

Seed = Annotated[int, Field(ge=0, lt=2**SEED_BITS, strict=True)]
Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]
S = TypeVar("S", bound="Settings")
T = TypeVar("T", bound="Section")
Source = TypeVar("Source", bound="ImageSource")


def expand_home(path: Any) -> Any:
    """The path, if it is one, with a leading ``~`` replaced by the home folder: a shell does not do that behind ``=``.

    Raises:
        ValueError: if it is empty, no UTF-8, or names the home of nobody.
    """
    if path == "":
        raise ValueError("must not be empty")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError("is not valid UTF-8; a configuration file cannot name it") from error
    try:
        return str(Path(path).expanduser()) if str(path).startswith("~") else path
    except RuntimeError as error:
        raise ValueError("there is no such user") from error


UserPath = Annotated[str, BeforeValidator(expand_home)]
"""A name or a path as somebody typed it."""

Side = Annotated[int, Field(ge=11, le=1024)]


def _two_sides(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError("allowed: a side in pixels, or [height, width]")
    return value


def _one_or_two(value: Any) -> str:
    return "two" if isinstance(value, list | tuple) else "one"


ImageSize = Annotated[
    Annotated[Side, Tag("one")] | Annotated[tuple[Side, Side], Tag("two")],
    Discriminator(_one_or_two),
    BeforeValidator(_two_sides),
]
"""The side of a square in pixels, or (height, width)."""

BUNDLED_SETS = ("bundled", "digits", "faces")
"""Values of ``data.name`` for images that installed packages ship."""

BUNDLED_CHECKPOINTS = ("bundled", "bundled-32")
"""Values of ``model.checkpoint`` for the checkpoints that this package ships."""

NOT_DATASETS = (*BUNDLED_SETS, "folder")
"""Values of ``data.name`` that are no Hugging Face dataset."""


class SettingsError(UserError):
    """A setting that cannot be used."""


class Section(BaseModel):
    """A table of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


_SHAPE = ("block_out_channels", "layers_per_block", "norm_num_groups", "attention")
"""Settings of [model] that describe the network."""


class ImageSource(Section):
    """Where images are from."""

    name: UserPath | None = None
    path: Annotated[Path | None, BeforeValidator(expand_home)] = None
    config: str | None = None
    split: str = "train"
    limit: int | None = Field(None, ge=1)
    photographs: tuple[str, ...] = Field(("astronaut", "chelsea", "coffee", "rocket"), min_length=1)
    tiles_per_side: int = Field(4, ge=1, le=64)
    image_column: str | None = None


class PublicSettings(ImageSource):
    """Images that no client holds and anybody can have; none without a ``name``."""

    @model_validator(mode="after")
    def _folder_has_path(self) -> Self:
        if self.name == "folder" and self.path is None:
            raise ValueError("data.public.path is not set; data.public.name = 'folder' needs the path of a folder")
        return self


class DataSettings(ImageSource):
    """Which images the clients hold, how they are split among them, and which are public."""

    name: UserPath = "bundled"
    label_column: str | None = None
    image_size: ImageSize = 16
    channels: Literal[1, 3] | None = None
    strict: bool = False
    partition: Literal["iid", "dirichlet", "photo", "folder"] = "iid"
    dirichlet_alpha: Positive = 0.5
    held_out: float = Field(0.0, ge=0, lt=1)
    public: PublicSettings = PublicSettings()

    @property
    def height_width(self) -> tuple[int, int]:
        """Height and width of every image in pixels."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @model_validator(mode="after")
    def _folder_has_path(self) -> Self:
        if self.name == "folder" and self.path is None:
            raise ValueError("data.path is not set; data.name = 'folder' needs the path of a folder of images")
        return self

    @model_validator(mode="after")
    def _folders_are_there(self) -> Self:
        if self.partition == "folder" and self.name != "folder":
            raise ValueError(f"data.partition = 'folder': needs data.name = 'folder', but it is {self.name!r}")
        return self


class ModelSettings(Section):
    """The network and, in diffusion, its noise schedule.

    A checkpoint brings its own: beside one, the other settings must agree with it where they are given.
    """

    checkpoint: UserPath = "bundled"
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    num_train_timesteps: int = Field(1000, ge=1, le=100_000)
    block_out_channels: tuple[Annotated[int, Field(ge=1)], ...] = Field((32, 64), min_length=1)
    layers_per_block: int = Field(1, ge=1, le=64)
    norm_num_groups: int = Field(8, ge=1)
    attention: bool = False
    config: UserPath | None = None
    unet: dict[str, Any] = Field(default_factory=dict)
    classifier: Literal["LeNet", "ConvNet", "ResNet"] = "ConvNet"
    classifier_args: dict[str, Any] = Field(default_factory=dict)
    classes: int | None = Field(None, ge=2)
    factory: str | None = Field(None, min_length=1)
    factory_args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        for key in _SHAPE:
            if key in self.unet and key in self.model_fields_set:
                raise ValueError(
                    f"model.{key} = {getattr(self, key)!r}: model.unet.{key} is given too; give one of them"
                )
        return self

    @model_validator(mode="after")
    def _factory_args_travel(self) -> Self:
        for key, value in self.factory_args.items():
            given = f"model.factory_args.{key} = {value!r}"
            if key.startswith("_") or key in ("", "lora"):
                raise ValueError(f"{given}: allowed: names of arguments without '_' in front, and not 'lora'")
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                allowed = "finite numbers, true, false, strings, lists, tables"
                raise ValueError(f"{given}: cannot be sent to clients; allowed: {allowed}") from error
        return self


class FederationSettings(Section):
    """How many clients, how often, who aggregates, and what each may use of this machine."""

    topology: Literal["server", "ring", "regular", "complete"] = "server"
    degree: int = Field(4, ge=1)
    curious_peers: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    clients: int = Field(4, ge=1, le=100_000)
    clients_per_round: int | None = Field(None, ge=1)
    rounds: int = Field(3, ge=1, le=1_000_000)
    client_cpus: Positive = 1.0
    client_gpus: float | None = Field(None, ge=0)
    timeout: Seconds = 600.0
    client_timeout: Seconds | None = None

    @model_validator(mode="after")
    def _sample_fits(self) -> Self:
        if self.clients_per_round is not None and self.clients_per_round > self.clients:
            raise ValueError(
                f"federation.clients_per_round = {self.clients_per_round}: at most federation.clients = {self.clients}"
            )
        return self

    @model_validator(mode="after")
    def _peers_fit(self) -> Self:
        if self.topology == "server":
            return self
        if self.clients_per_round not in (None, self.clients):
            raise ValueError(
                f"federation.clients_per_round = {self.clients_per_round}: with federation.topology = "
                f"{self.topology!r} all peers take part; allowed: {self.clients}"
            )
        for peer in self.curious_peers:
            if peer >= self.clients:
                raise ValueError(f"federation.curious_peers: {peer} is no peer; allowed: 0 to {self.clients - 1}")
        return self


class LoRASettings(Section):
    """Adapters that clients train in place of the model; none with rank 0."""

    rank: int = Field(0, ge=0, le=1024)
    alpha: int | None = Field(None, ge=1)
    targets: tuple[str, ...] = Field(("*",), min_length=1)


class ClientSettings(Section):
    """The private seed, and the local training that the server prescribes."""

    seed: Seed | None = None
    update: Literal["gradient", "weights"] = "gradient"
    batch_size: int = Field(1, ge=1, le=10_000)
    local_steps: int = Field(1, ge=1, le=10_000)
    epochs: int | None = Field(None, ge=1, le=10_000)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = Field(0.0, ge=0, lt=1)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    lr: Positive = 0.01
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: Positive | None = None
    ema_decay: float | None = Field(None, ge=0, lt=1)
    gradient_accumulation: int = Field(1, ge=1, le=10_000)
    horizontal_flip: bool = False
    min_snr_gamma: Positive | None = None
    noise_offset: float = Field(0.0, ge=0)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    trainable: tuple[str, ...] = Field(("*",), min_length=1)
    lora: LoRASettings = LoRASettings()
    label_dropout: float = Field(0.0, ge=0, lt=1)

    @field_validator("betas", mode="before")
    @classmethod
    def _two_betas(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) != 2:
            raise ValueError("allowed: two numbers, of the gradient's first and second moment")
        return value

    @model_validator(mode="after")
    def _samples_fit(self) -> Self:
        samples = self.batch_size * self.gradient_accumulation * self.local_steps
        if samples > MOST_SAMPLES:
            raise ValueError(
                f"client.batch_size = {self.batch_size}: with client.gradient_accumulation = "
                f"{self.gradient_accumulation} and client.local_steps = {self.local_steps} a client would draw "
                f"{samples:,} images in a round; allowed: at most {MOST_SAMPLES:,}"
            )
        return self


class StrategySettings(Section):
    """How the server aggregates."""

    name: str = "FedSGD"
    args: dict[str, Any] = Field(default_factory=dict)
    ema: float | None = Field(None, gt=0, lt=1)


class DefenceSettings(Section):
    """What clients do to their update before it leaves them."""

    name: str = "none"
    args: dict[str, Any] = Field(default_factory=dict)


class RaySettings(Section):
    """Where the federation runs: on this machine, or on the Ray cluster at ``address``."""

    address: str | None = Field(None, pattern=r"^(auto|[^\s:/]+:\d+|ray://\S*)$")

    @field_validator("address")
    @classmethod
    def _of_a_node(cls, address: str | None) -> str | None:
        if address is not None and address.startswith("ray://"):
            raise ValueError(
                "Flower's simulation does not run through Ray Client; allowed: auto or HOST:PORT, on a machine that is "
                "part of the cluster (ray start --address=HOST:PORT)"
            )
        return address


DIFFUSION: Literal["diffusion"] = "diffusion"
"""The default of ``task``."""
_OF_TASK: dict[str, Tree] = {"classification": {"model": {"checkpoint": NO_CHECKPOINT}, "data": {"held_out": 0.2}}}
"""Defaults that hold with a value of ``task``, in place of those of the tables."""

_LOCAL_STEPS = (
    "local_steps",
    "epochs",
    "optimizer",
    "momentum",
    "betas",
    "eps",
    "weight_decay",
    "lr",
    "lr_schedule",
    "max_grad_norm",
    "ema_decay",
)

_SCHEDULE = ("prediction_type", "num_train_timesteps")
"""Settings of [model] that describe the noise schedule."""

BROUGHT_BY_CHECKPOINT = tuple(f"model.{key}" for key in (*_SCHEDULE, *_SHAPE, "classifier", "classes"))
"""What a checkpoint decides: these settings, where they are given beside one, must agree with it."""


def _of_source(table: str, of_dataset: tuple[str, ...] = ()) -> Iterator[Void]:
    """What the name of an image source makes void in its table; ``of_dataset``: more settings of a dataset alone."""
    name = f"{table}.name"
    yield Void(name, lambda name: name != "folder", (f"{table}.path",), "no folder is read", f"{name} = 'folder'")
    yield Void(
        name,
        lambda name: name != "bundled",
        (f"{table}.photographs", f"{table}.tiles_per_side"),
        "no bundled photograph is used",
        f"{name} = 'bundled'",
    )
    yield Void(
        name,
        lambda name: name is None or name in NOT_DATASETS,
        tuple(f"{table}.{key}" for key in ("config", "split", "image_column", *of_dataset)),
        "there is no Hugging Face dataset",
        f"a dataset's name as {name}",
    )


class Settings(Section):
    """Everything that defines a federation."""

    arguments_of: ClassVar[dict[str, str]] = {
        "strategy.name": "strategy.args",
        "defence.name": "defence.args",
        "model.factory": "model.factory_args",
        "model.classifier": "model.classifier_args",
    }
    """Key of a name -> key of the arguments that belong to it."""

    void: ClassVar[tuple[Void, ...]] = (
        Void(
            "task",
            lambda task: task != DIFFUSION,
            (
                *(f"model.{key}" for key in (*_SCHEDULE, *_SHAPE, "config", "unet")),
                "client.min_snr_gamma",
                "client.noise_offset",
                "client.label_dropout",
            ),
            "nothing is denoised",
            "task = 'diffusion'",
        ),
        Void(
            "task",
            lambda task: task == DIFFUSION,
            ("model.classifier", "model.classifier_args", "model.classes"),
            "nothing is classified",
            "task = 'classification'",
        ),
        *_of_source("data", ("label_column",)),
        *_of_source("data.public"),
        Void(
            "data.name",
            lambda name: name in BUNDLED_SETS,
            ("data.strict",),
            "no file can be broken",
            "data.name = 'folder' or a dataset's name",
        ),
        Void(
            "model.checkpoint",
            lambda checkpoint: checkpoint != NO_CHECKPOINT,
            ("model.config", "model.unet", "model.factory", "model.factory_args", "model.classifier_args"),
            "the checkpoint brings its own network",
            "model.checkpoint = 'none'",
        ),
        Void(
            "model.config",
            lambda config: config is not None,
            tuple(f"model.{key}" for key in _SHAPE),
            "it describes the network",
            "model.config unset; single keys go into model.unet",
        ),
        Void(
            "model.factory",
            lambda factory: factory is not None,
            (
                "model.config",
                "model.unet",
                "model.classifier",
                "model.classifier_args",
                *(f"model.{key}" for key in _SHAPE),
            ),
            "its arguments describe the network",
            "model.factory unset; arguments go into model.factory_args",
        ),
        Void(
            "model.factory",
            lambda factory: factory is None,
            ("model.factory_args",),
            "there is no factory",
            "a factory as model.factory",
        ),
        Void(
            "data.partition",
            lambda partition: partition != "dirichlet",
            ("data.dirichlet_alpha",),
            "nothing is drawn from a Dirichlet distribution",
            "data.partition = 'dirichlet'",
        ),
        Void(
            "federation.topology",
            lambda topology: topology == "server",
            ("federation.curious_peers",),
            "there are no peers",
            "federation.topology = 'ring', 'regular' or 'complete'",
        ),
        Void(
            "federation.topology",
            lambda topology: topology != "regular",
            ("federation.degree",),
            "peers have no degree to choose",
            "federation.topology = 'regular'",
        ),
        Void(
            "client.update",
            lambda update: update == "gradient",
            tuple(f"client.{key}" for key in _LOCAL_STEPS),
            "there is no local step",
            "client.update = 'weights'",
        ),
        Void(
            "client.update",
            lambda update: update == "weights",
            ("strategy.args.lr",),
            "peers take no step along gradients",
            "client.update = 'gradient'",
            only_with={"strategy.name": "Gossip"},
        ),
        Void(
            "client.epochs",
            lambda epochs: epochs is not None,
            ("client.local_steps",),
            "the number of steps follows",
            "client.epochs unset",
        ),
        Void(
            "client.optimizer",
            lambda optimizer: optimizer != "sgd",
            ("client.momentum",),
            "there is no momentum to choose",
            "client.optimizer = 'sgd'",
        ),
        Void(
            "client.optimizer",
            lambda optimizer: optimizer == "sgd",
            ("client.betas", "client.eps"),
            "there are no moments of the gradient",
            "client.optimizer = 'adam' or 'adamw'",
        ),
        Void(
            "client.lora.rank",
            lambda rank: rank == 0,
            ("client.lora.alpha", "client.lora.targets"),
            "there are no adapters",
            "client.lora.rank above 0",
        ),
    )
    """What the choice of one setting makes meaningless."""

    @classmethod
    def without_outlived_arguments(cls, file: Tree, given: Tree) -> Tree:
        """``file`` without what came with a choice that ``given`` replaces by another one.

        That is the arguments of a name, the network where the task is now another one, the network's settings where a
        checkpoint now brings them, and a key of the network under its other name.
        """
        defaults = defaults_of(cls, str(look_up(given, "task", look_up(file, "task"))))
        kept = drop_arguments(file, given, defaults, cls.arguments_of)
        if look_up(given, "task", look_up(file, "task", DIFFUSION)) != look_up(file, "task", DIFFUSION):
            remove(kept, "model")
        before = look_up(kept, "model.checkpoint", look_up(defaults, "model.checkpoint"))
        checkpoint = look_up(given, "model.checkpoint", before)
        for key in BROUGHT_BY_CHECKPOINT if checkpoint != NO_CHECKPOINT else ():
            if checkpoint != before or look_up(kept, key) == look_up(defaults, key):
                remove(kept, key)
        for key in _SHAPE:  # two names of one thing: the override's counts
            for one, other in ((f"model.{key}", f"model.unet.{key}"), (f"model.unet.{key}", f"model.{key}")):
                if look_up(given, one) is not None:
                    remove(kept, other)
        return kept

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_task(cls, tree: Any) -> Any:
        """Give what is unset the task's own default: no bundled model classifies, accuracy needs held-out images."""
        return fill_in(tree, _OF_TASK.get(str(tree.get("task")), {})) if isinstance(tree, dict) else tree

    seed: Seed = 0
    task: Literal["diffusion", "classification"] = DIFFUSION
    threat: Literal["private", "known"] = "private"
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    federation: FederationSettings = FederationSettings()
    client: ClientSettings = ClientSettings()
    strategy: StrategySettings = StrategySettings()
    defence: DefenceSettings = DefenceSettings()
    ray: RaySettings = RaySettings()

    @model_validator(mode="after")
    def _roots_differ(self) -> Self:
        if self.client.seed == self.seed:
            raise ValueError(
                f"client.seed = {self.seed}: it is the public seed too, which the server knows; allowed: another number"
            )
        return self


def resolve(settings: S) -> S:
    """The same settings with absolute paths, and a private seed drawn by the system where it was left open."""
    client, data, model = settings.client, settings.data, settings.model
    if client.seed is None:
        client = client.model_copy(update={"seed": secrets.randbits(SEED_BITS)})
    data = _with_absolute_source(data.model_copy(update={"public": _with_absolute_source(data.public)}))
    trained = model.checkpoint not in (NO_CHECKPOINT, *BUNDLED_CHECKPOINTS)
    model = _with_absolute(model, "checkpoint", trained and Path(model.checkpoint).exists())
    model = _with_absolute(model, "config", model.config is not None and Path(model.config).suffix == ".json")
    return settings.model_copy(update={"client": client, "data": data, "model": model})


def _with_absolute_source(source: Source) -> Source:
    """The image source with absolute paths."""
    if source.path is not None:
        source = source.model_copy(update={"path": source.path.absolute()})
    name = source.name or ""
    return _with_absolute(source, "name", os.sep in name and Path(name).exists())


def _with_absolute(section: T, key: str, is_path: bool) -> T:
    """The section with the path at ``key`` made absolute; the same section if that is a name and no path."""
    return section.model_copy(update={key: str(Path(getattr(section, key)).absolute())}) if is_path else section


def flower_run_directory(context: "Context") -> Path:
    """Where a run under ``flwr run`` keeps its files: the same rule on the server's side and on the clients'."""
    home = context.run_config.get("out") or os.environ.get("FL_SIM_HOME") or Path.home() / ".fl-sim"
    return Path(str(home)).expanduser() / f"run-{context.run_id}"


@cache
def defaults_of(cls: type[Settings], task: str = DIFFUSION) -> Tree:
    """The tree of all defaults with this value of ``task``; with one that there is not, those of diffusion."""
    return cls.model_validate({"task": task} if task in _OF_TASK else {}).model_dump(mode="json")
