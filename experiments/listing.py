"""What ``fl-sim list`` prints: everything that has a name, with one line on it."""

from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from attacks.attack import Attack, Needs
from attacks.model_inversion.registry import INVERSIONS
from attacks.registry import ATTACKS
from experiments.checkpoint import load_checkpoint
from experiments.metrics.registry import METRICS
from experiments.package_data import BUNDLED_PRIORS
from experiments.settings import PRESETS, preset_names
from experiments.sweep.file import SWEEPS, sweep_names
from fl_sim.checkpoint import Checkpoint
from fl_sim.config import SettingsError
from fl_sim.defences.registry import DEFENCES
from fl_sim.diffusion import KNOWN_NETWORKS
from fl_sim.errors import nearest
from fl_sim.images.bundled import PHOTOGRAPHS
from fl_sim.images.small_pictures import SMALL_PICTURES
from fl_sim.network import count_parameters, outline
from fl_sim.network.factory import GROUP as FACTORIES
from fl_sim.registry import plugins
from strategies.registry import available as strategies
from strategies.registry import strategy_class


def list_names(only: str | None = None) -> Group:
    """A table of names for each kind, or for the one called ``only`` (or its plural); SettingsError if unknown."""
    kinds = _kinds()
    if only is not None:
        singular = only.removesuffix("s").replace("-", " ")
        if singular not in kinds:
            raise SettingsError(f"KIND {only!r}: unknown; allowed: {', '.join(kinds)}{nearest(singular, kinds)}")
        kinds = {singular: kinds[singular]}
    return Group(*(_table(kind, names) for kind, names in kinds.items()))


def _kinds() -> dict[str, dict[str, str]]:
    """What there is of every kind: a line on each by its name."""
    return {
        "attack": {name: _attack_line(ATTACKS.find(name)) for name in ATTACKS.names()},
        "model inversion": {name: _summary_line(INVERSIONS.find(name)) for name in INVERSIONS.names()},
        "strategy": {name: _summary_line(strategy_class(name)) for name in strategies()},
        "defence": {name: _with_arguments(DEFENCES.find(name)) for name in DEFENCES.names()},
        "metric": {name: _summary_line(METRICS.find(name)) for name in METRICS.names()},
        "network": {
            **{name: _network_line(config) for name, config in KNOWN_NETWORKS.items()},
            **{name: f"model.factory, {path}" for name, path in sorted(plugins(FACTORIES).items())},
        },
        "dataset": {
            "bundled": f"photographs: {', '.join(PHOTOGRAPHS)}",
            **{name: pictures.description for name, pictures in SMALL_PICTURES.items()},
            "folder": "the images under data.path",
            "HUB_ID": "a Hugging Face dataset, or the path of a local one",
        },
        "prior": {name: _prior_line(load_checkpoint(file)) for name, file in BUNDLED_PRIORS.items()},
        "preset": {name: _first_sentence(PRESETS / f"{name}.toml") for name in preset_names()},
        "sweep": {name: _first_sentence(SWEEPS / f"{name}.toml") for name in sweep_names()},
    }


def _table(kind: str, names: dict[str, str]) -> Table:
    """One table a kind, so that the longest name of one does not squeeze the descriptions of another."""
    table = Table(box=None, padding=(0, 2), show_header=False, title=kind, title_justify="left", title_style="dim")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, description in names.items():
        table.add_row(name, description)
    return table


def _network_line(config: dict[str, Any]) -> str:
    parameters = count_parameters(outline(config).parameters()) / 1e6
    return f"{parameters:.1f} million parameters; channels {', '.join(map(str, config['block_out_channels']))}"


def _prior_line(prior: Checkpoint) -> str:
    assert prior.image_shape is not None
    channels, height, width = prior.image_shape
    parameters = count_parameters(outline(prior.model).parameters()) / 1e6
    return f"images of {height}x{width}, {'grey' if channels == 1 else 'RGB'}; {parameters:.1f} million parameters"


def _first_sentence(file: Path) -> str:
    """That of the comment at the head of a file of settings."""
    lines = takewhile(lambda line: line.startswith("# "), file.read_text(encoding="utf-8").splitlines())
    sentence, stop, _ = " ".join(line.removeprefix("# ") for line in lines).partition(". ")
    return sentence + stop.rstrip()


def _summary_line(documented: type) -> str:
    return (documented.__doc__ or "").strip().partition("\n")[0]


def _attack_line(attack: type[Attack]) -> str:
    known = " Of diffusion models under threat = 'known' alone." if Needs.NOISE_AND_TIMESTEPS in attack.needs else ""
    return _summary_line(attack) + known


def _with_arguments(defence: type[Any]) -> str:
    """What a defence does, and below that its arguments with their defaults."""
    arguments = [
        f"[dim]{name} = {field.get_default()!r}: {field.description}[/dim]"
        for name, field in defence.model_fields.items()
    ]
    return "\n".join([_summary_line(defence), *arguments])
