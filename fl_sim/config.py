"""The federation's settings: one typed, frozen tree, from TOML and ``key=value`` overrides; unknown keys are refused.

Every key is described in docs/settings.md. A user's mistake is one line: the key, its value and what is allowed.
"""

import difflib
import os
import re
import secrets
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

if TYPE_CHECKING:
    from flwr.app import Context

SEED_BITS = 63

Seed = Annotated[int, Field(ge=0, lt=2**SEED_BITS, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
S = TypeVar("S", bound="Settings")


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one line."""


class Section(BaseModel):
    """A table of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSettings(Section):
    """Which images the clients hold, and how they are split among them."""

    name: str = "bundled"
    path: Path | None = None
    split: str = "train"
    limit: int | None = Field(None, ge=1)
    photographs: tuple[str, ...] = Field(("astronaut", "chelsea", "coffee", "rocket"), min_length=1)
    image_size: Literal[16, 32, 64, 128] = 16
    partition: Literal["iid", "dirichlet", "photo"] = "iid"
    dirichlet_alpha: Positive = 0.5

    @model_validator(mode="after")
    def _folder_has_path(self) -> Self:
        if self.name == "folder" and self.path is None:
            raise ValueError("data.path is not set; data.name = 'folder' needs the path of a folder of images")
        return self


class ModelSettings(Section):
    """The network and its noise schedule; a checkpoint brings its own shape."""

    checkpoint: str = "bundled"
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    num_train_timesteps: int = Field(1000, ge=1)
    block_out_channels: tuple[Annotated[int, Field(ge=1)], ...] = Field((32, 64), min_length=1)
    layers_per_block: int = Field(1, ge=1)
    norm_num_groups: int = Field(8, ge=1)
    attention: bool = False


class FederationSettings(Section):
    """How many clients, how often, who aggregates, and what each may use of this machine."""

    topology: Literal["server", "ring", "regular", "complete"] = "server"
    degree: int = Field(4, ge=1)
    curious_peers: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    clients: int = Field(4, ge=1)
    clients_per_round: int | None = Field(None, ge=1)
    rounds: int = Field(3, ge=1)
    client_cpus: Positive = 1.0
    client_gpus: float | None = Field(None, ge=0, allow_inf_nan=False)
    timeout: Positive = 600.0
    client_timeout: Positive | None = None

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

    rank: int = Field(0, ge=0)
    alpha: int | None = Field(None, ge=1)
    targets: tuple[str, ...] = Field(("*",), min_length=1)


class ClientSettings(Section):
    """The private seed, and the local training that the server prescribes."""

    seed: Seed | None = None
    update: Literal["gradient", "weights"] = "gradient"
    batch_size: int = Field(1, ge=1)
    local_steps: int = Field(1, ge=1)
    epochs: int | None = Field(None, ge=1)
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = Field(0.0, ge=0, lt=1)
    lr: Positive = 0.01
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: Positive | None = None
    trainable: tuple[str, ...] = Field(("*",), min_length=1)
    lora: LoRASettings = LoRASettings()

    @model_validator(mode="after")
    def _gradient_is_one_step(self) -> Self:
        for key in ("local_steps", "epochs", "lr_schedule", "max_grad_norm"):
            value, default = getattr(self, key), type(self).model_fields[key].default
            if self.update == "gradient" and value != default:
                raise ValueError(
                    f"client.{key} = {value!r}: with client.update = 'gradient' there is no local step; "
                    f"allowed: {'unset' if default is None else repr(default)}"
                )
        return self

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if self.epochs is not None and self.local_steps > 1:
            raise ValueError(
                f"client.epochs = {self.epochs}: replaces client.local_steps = {self.local_steps}; give one"
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

    address: str | None = None


class Settings(Section):
    """Everything that defines a federation."""

    seed: Seed = 0
    threat: Literal["private", "known"] = "private"
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    federation: FederationSettings = FederationSettings()
    client: ClientSettings = ClientSettings()
    strategy: StrategySettings = StrategySettings()
    defence: DefenceSettings = DefenceSettings()
    ray: RaySettings = RaySettings()


def load_settings(cls: type[S], source: Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> S:
    """Settings of class ``cls`` from a TOML file or a nested mapping, with ``key=value`` overrides applied in order.

    A key is dotted (``client.batch_size``); a value is parsed as TOML and, where that fails, taken as a string.

    Raises:
        SettingsError: naming the key, its value and what is allowed, with the nearest name where one is close.
    """
    tree = _read_toml(source) if isinstance(source, Path) else deepcopy(dict(source))
    for override in overrides:
        _apply(tree, override)
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_explain(cls, error.errors()[0])) from error


def resolve(settings: S) -> S:
    """The same settings with the private seed, where it was left open, drawn by the system."""
    client = settings.client
    if client.seed is None:
        client = client.model_copy(update={"seed": secrets.randbits(SEED_BITS)})
    return settings.model_copy(update={"client": client})


def dump_toml(settings: Settings) -> str:
    """The settings as TOML that ``load_settings`` reads back unchanged; what is unset is left out."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def flower_run_directory(context: "Context") -> Path:
    """Where a run under ``flwr run`` keeps its files: the same rule on the server's side and on the clients'."""
    home = context.run_config.get("out") or os.environ.get("FL_SIM_HOME") or Path.home() / ".fl-sim"
    return Path(str(home)) / f"run-{context.run_id}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one ``key=value`` in a tree of tables, making the tables on the way."""
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise SettingsError(f"override {override!r}: expected key=value, such as client.batch_size=4")
    *tables, leaf = path
    for depth, name in enumerate(tables):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"override {override!r}: {'.'.join(path[: depth + 1])} is a value, not a table")
    tree[leaf] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _explain(cls: type[Settings], error: ErrorDetails) -> str:
    """One line for one of pydantic's errors."""
    key, value = ".".join(str(part) for part in error["loc"]), error["input"]
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        siblings = ", ".join(_model_at(cls, error["loc"][:-1]).model_fields)
        return f"{key} = {value!r}: unknown setting; allowed here: {siblings}{nearest(key, _keys(cls))}"
    choices = re.findall(r"'([^']*)'", error["ctx"]["expected"]) if error["type"] == "literal_error" else ()
    return f"{key} = {value!r}: {error['msg'][0].lower()}{error['msg'][1:]}{nearest(str(value), choices)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the one of ``names`` that was probably meant, to end an error message with; empty if none is close."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, tables included."""
    for name, field in cls.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")


def _model_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for name in location:
        annotation = cls.model_fields[str(name)].annotation
        assert isinstance(annotation, type)
        cls = annotation
    return cls
