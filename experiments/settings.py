"""A run's settings: the federation's, plus the attack on it; presets by name."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ByteSize, Field, model_validator

from experiments.package_data import BUNDLED_FILES, BUNDLED_PRIORS, data_file
from fl_sim.config import (
    DIFFUSION,
    PublicSettings,
    Seconds,
    Section,
    Settings,
    SettingsError,
    UserPath,
    defaults_of,
    expand_home,
    resolve,
)
from fl_sim.errors import nearest
from fl_sim.setting_layers import Tree, Void, look_up
from fl_sim.settings_file import dump_toml, load_settings

PRESETS = data_file("presets")
SWEEPS = PRESETS / "sweeps"
"""The folder of those of ``fl-sim sweep``."""
NO_ATTACK = "none"
NO_INVERSION = "none"
_PRIORS = BUNDLED_FILES | BUNDLED_PRIORS


class AttackSettings(Section):
    """Which attacks run on the updates, when, with which arguments and on how many workers."""

    name: str | tuple[str, ...] = "residual"
    when: Literal["during", "after", "never"] = "during"
    every: int = Field(1, ge=1)
    clients: tuple[Annotated[int, Field(ge=0)], ...] = ()
    knows_defence: bool = True
    args: dict[str, dict[str, Any]] = Field(default_factory=dict)
    workers: int = Field(2, ge=1, le=10_000)
    queue_limit: int | None = Field(None, ge=1)
    gpus_per_worker: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1, le=10_000)
    timeout: Seconds = 600.0
    capture: Literal["all", "attacked", "none"] = "all"
    max_disk: Annotated[ByteSize, Field(ge=1, lt=2**63)] | None = None

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.capture == "none" and self.when == "never":
            raise ValueError(
                "attack.capture = 'none': with attack.when = 'never' a run would leave nothing to attack; allowed: "
                "'attacked' or 'all', or attack.when = 'during' or 'after'"
            )
        return self

    @model_validator(mode="after")
    def _none_is_alone(self) -> Self:
        if not isinstance(self.name, str) and NO_ATTACK in self.name and len(self.name) > 1:
            raise ValueError(f"attack.name = {list(self.name)}: {NO_ATTACK!r} stands alone, or other names without it")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks to run, in order, without repetition; empty where the server is not curious."""
        return _names(self.name)

    @property
    def in_run(self) -> bool:
        """Whether the run itself attacks what it captures."""
        return bool(self.names) and self.when != "never"

    def due(self, server_round: int, rounds: int) -> bool:
        """Whether updates of this round of so many are attacked; those of the last always are."""
        return server_round % self.every == 0 or server_round == rounds

    def chooses(self, client: int) -> bool:
        """Whether updates of this client are attacked; -1 is the sum over all."""
        return client < 0 or not self.clients or client in self.clients

    @property
    def arguments(self) -> dict[str, dict[str, Any]]:
        """The arguments of every attack to run, by its name; a bundled prior is named by its path."""
        return {name: with_prior_path(self.args.get(name, {})) for name in self.names}


def with_prior_path(arguments: dict[str, Any]) -> dict[str, Any]:
    """An attack's arguments with the path of the bundled prior that they name: attacks read files only."""
    prior = arguments.get("prior")
    path = _PRIORS.get(prior) if isinstance(prior, str) else None
    return arguments if path is None else arguments | {"prior": str(path)}


def _names(name: Any) -> tuple[str, ...]:
    """The attacks in a value of ``attack.name``, in order, without repetition; none for any other value."""
    names = [name] if isinstance(name, str) else name if isinstance(name, list | tuple) else []
    return tuple(dict.fromkeys(each for each in names if isinstance(each, str) and each != NO_ATTACK))


class InversionSettings(Section):
    """Which model inversion attacks the global classifier, and after which rounds."""

    name: str = NO_INVERSION
    every: int = Field(0, ge=0)
    args: dict[str, dict[str, Any]] = Field(default_factory=dict)
    evaluator_steps: int = Field(800, ge=1)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the one that is named."""
        return self.args.get(self.name, {})

    def due(self, server_round: int, rounds: int) -> bool:
        """Whether it attacks the global weights of this round of so many; those of the last always."""
        if self.name == NO_INVERSION:
            return False
        return server_round == rounds or (self.every > 0 and server_round % self.every == 0)


_PUBLIC = tuple(f"data.public.{key}" for key in PublicSettings.model_fields)
"""Only a model inversion uses them."""
_INVERSION = (*(f"inversion.{key}" for key in InversionSettings.model_fields), *_PUBLIC)


def _several(value: Any) -> Any:
    """A list of one, where somebody typed the one without brackets."""
    return (value,) if isinstance(value, str) else value


class UtilitySettings(Section):
    """How often the evaluator measures the model, and how many images it samples."""

    every: int = Field(1, ge=0)
    samples: int = Field(16, ge=0, le=10_000)


class MetricsSettings(Section):
    """What reconstructions are measured by, and what chance is measured on.

    ``names``: metrics, each a column of the leakage table; mse and psnr always are. ``lpips_weights``: files with the
    backbones of LPIPS. ``chance_pairs``: at most so many pairs of a reconstruction and an image that is not its own
    make the chance level of a metric; 0: it is not computed.
    """

    names: Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)] = ("mse", "psnr", "ssim", "lpips")
    lpips_weights: Annotated[tuple[UserPath, ...], BeforeValidator(_several)] = ()
    chance_pairs: int = Field(500, ge=0, le=1_000_000)


class ExperimentSettings(Settings):
    """Everything that defines a run: the federation, the attack, and what is measured beside it."""

    void: ClassVar[tuple[Void, ...]] = (
        *Settings.void,
        Void(
            "attack.name",
            lambda name: not _names(name),
            (*(f"attack.{key}" for key in AttackSettings.model_fields if key not in ("name", "args")),),
            "nobody attacks",
            "an attack's name",
        ),
        Void(
            "attack.when",
            lambda when: when == "never",
            ("attack.queue_limit",),
            "no attack waits",
            "attack.when = 'during'",
        ),
        Void(
            "attack.name",
            lambda name: not _names(name),
            ("federation.curious_peers",),
            "nobody is curious",
            "an attack's name",
        ),
        Void(
            "defence.name",
            lambda name: name == "none",
            ("attack.knows_defence",),
            "there is none to know of",
            "a defence's name",
        ),
        Void(
            "inversion.name",
            lambda name: name == NO_INVERSION,
            ("inversion.every", "inversion.evaluator_steps", *_PUBLIC),
            "no classifier is inverted",
            "a model inversion's name",
        ),
        Void("task", lambda task: task == DIFFUSION, _INVERSION, "nothing is classified", "task = 'classification'"),
        Void(
            "federation.topology",
            lambda topology: topology != "server",
            _INVERSION,
            "nobody holds a global model",
            "federation.topology = 'server'",
        ),
        Void(
            "task",
            lambda task: task != DIFFUSION,
            ("utility.samples",),
            "nothing is sampled",
            "task = 'diffusion'",
        ),
        Void(
            "metrics.names",
            lambda names: "lpips" not in str(names),
            ("metrics.lpips_weights",),
            "LPIPS is not computed",
            "lpips, lpips_vgg or lpips_squeeze in it",
        ),
        Void(
            "attack.name",
            lambda name: not _names(name),
            tuple(f"metrics.{key}" for key in MetricsSettings.model_fields),
            "nothing is reconstructed",
            "an attack's name",
        ),
        Void(
            "utility.every",
            lambda every: every == 0,
            ("utility.samples",),
            "nothing is measured",
            "utility.every above 0",
        ),
    )

    @classmethod
    def without_outlived_arguments(cls, file: Tree, given: Tree) -> Tree:
        """As in ``Settings``, and without the arguments of attacks and inversions that are no longer named.

        Arguments of unknown ones stay, to be refused later.
        """
        # Imported here: they bring in torch, which fl-sim --help does without.
        from attacks.model_inversion.registry import INVERSIONS
        from attacks.registry import ATTACKS

        kept = super().without_outlived_arguments(file, given)
        for table, registered in (("attack", ATTACKS.names()), ("inversion", INVERSIONS.names())):
            key, arguments = f"{table}.name", look_up(kept, f"{table}.args")
            named = _names(look_up(given, key, look_up(file, key, look_up(defaults_of(cls), key))))
            if isinstance(arguments, dict):
                others = {*registered, *_names(look_up(file, key))} - set(named)
                kept[table]["args"] = {name: values for name, values in arguments.items() if name not in others}
        return kept

    @model_validator(mode="after")
    def _attacked_clients_are_there(self) -> Self:
        for client in self.attack.clients:
            if client >= self.federation.clients:
                raise ValueError(f"attack.clients: {client} is no client; allowed: 0 to {self.federation.clients - 1}")
        return self

    @model_validator(mode="after")
    def _inversion_has_public_images(self) -> Self:
        if self.inversion.name != NO_INVERSION and self.data.public.name is None:
            raise ValueError(
                f"data.public.name is not set; inversion.name = {self.inversion.name!r} needs images that no client "
                "holds: a folder, a bundled set or a dataset"
            )
        return self

    attack: AttackSettings = AttackSettings()
    inversion: InversionSettings = InversionSettings()
    utility: UtilitySettings = UtilitySettings()
    metrics: MetricsSettings = MetricsSettings()


def preset_names() -> list[str]:
    """The presets of runs that come with the package, sorted; those in a folder are called ``folder/name``."""
    files = [file for file in PRESETS.rglob("*.toml") if SWEEPS not in file.parents]
    return sorted(file.relative_to(PRESETS).with_suffix("").as_posix() for file in files)


Source = str | Path | Mapping[str, Any] | ExperimentSettings
"""What to run: a preset's name, a TOML file, values by dotted key, or settings."""


def load_run(source: Source, overrides: Sequence[str] = ()) -> ExperimentSettings:
    """Resolved settings from what somebody wants to run, with ``key=value`` overrides applied in order.

    A string that is no preset is a file if it has a suffix or is there.

    Raises:
        SettingsError: if there is no such preset or file, or a setting in it is wrong.
    """
    if isinstance(source, ExperimentSettings):
        tree: Path | Mapping[str, Any] = tomllib.loads(dump_toml(source))
    elif isinstance(source, Mapping):
        tree = _nested(source)
    else:
        tree = source if isinstance(source, Path) else _preset_or_file(source)
    return _with_absolute_weights(resolve(load_settings(ExperimentSettings, tree, overrides)))


def _nested(values: Mapping[str, Any]) -> Tree:
    """Tables from values by dotted key; a value may be a table itself."""
    tree: Tree = {}
    for key, value in values.items():
        *tables, leaf = str(key).split(".")
        table = tree
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise SettingsError(f"{key} = {value!r}: {name} is a value, not a table")
        table[leaf] = {**table.get(leaf, {}), **value} if isinstance(value, Mapping) else value
    return tree


def _preset_or_file(name: str) -> Path:
    try:
        path = Path(expand_home(name))
    except ValueError as error:
        raise SettingsError(f"preset or file {name!r}: {error}") from error
    return _preset(name) if name in preset_names() or (path.suffix == "" and not path.exists()) else path


def _with_absolute_weights(settings: ExperimentSettings) -> ExperimentSettings:
    weights = tuple(str(Path(file).absolute()) for file in settings.metrics.lpips_weights)
    return settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"lpips_weights": weights})})


def _preset(name: str) -> Path:
    if name in preset_names():
        return PRESETS / f"{name}.toml"
    available = ", ".join(preset_names())
    hint = nearest(name, preset_names())
    raise SettingsError(f"preset {name!r} is unknown; available: {available}, or a FILE.toml{hint}")
