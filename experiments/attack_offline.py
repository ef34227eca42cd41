"""``fl-sim attack``: one attack on one captured update, without the images to compare with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from attacks.attack import AttackError
from attacks.observation import Observation
from attacks.reconstruction_file import save_reconstruction
from attacks.registry import create
from experiments.commands import choose_device
from experiments.pictures import save_grid
from experiments.run_directory import make_empty_folder
from experiments.settings import ExperimentSettings
from fl_sim.config import SettingsError
from fl_sim.diffusion import ConfigError, factory_path
from fl_sim.draws import derive_seed
from fl_sim.files import write_atomically
from fl_sim.settings_file import load_settings


def attack_capture(
    capture: Path,
    name: str,
    seed: int,
    overrides: list[str],
    out: Path,
    device: str,
    threads: int,
    console: Console,
    trusted: Sequence[str] = (),
) -> None:
    """Attack the update in ``capture`` and write the reconstruction and a picture of it into ``out``.

    ``seed`` is the run's public seed: the attack gets the one that the run would give it. ``trusted``: factories of
    networks whose code may run (fl_sim/diffusion/factory.py).

    Raises:
        AttackError, CaptureError, SettingsError: if there is no such attack, capture or device, the attack cannot work
            on the capture, or ``out`` is not empty.
    """
    attack = create(name, _arguments(name, overrides))
    observation = Observation.load(capture, _factories(trusted))
    attack.check(observation)
    where = choose_device(device)
    make_empty_folder(out)
    torch.set_num_threads(threads)
    seen = observation.circumstances
    attack_seed = derive_seed(seed, "attack", attack.name, seen.round, seen.client)
    with console.status(f"{name} on {capture.name}"):
        try:
            found = attack.reconstruct(observation, attack_seed, where)
        except AttackError:
            out.rmdir()  # nothing to keep
            raise
    picture = out / "reconstruction.png"
    write_atomically(out / "reconstruction.safetensors", lambda file: save_reconstruction(file, found))
    write_atomically(picture, lambda file: save_grid(file, found.images))
    timesteps = ", ".join(str(timestep) if timestep >= 0 else "unknown" for timestep in found.timesteps.tolist())
    console.print(
        f"matching loss {found.matching_loss:.3g} after {found.evaluations} evaluations in {found.seconds:.1f} s "
        f"on {found.device}; timesteps: {timesteps}",
        highlight=False,
    )
    console.print(f"reconstruction: [bold]{picture}[/bold]", soft_wrap=True)


def _factories(trusted: Sequence[str]) -> list[str]:
    """The paths of the factories after ``--trust``."""
    try:
        return [factory_path(factory) for factory in trusted]
    except ConfigError as error:
        raise SettingsError(f"--trust {error}") from error


def _arguments(attack: str, overrides: list[str]) -> dict[str, Any]:
    """An attack's arguments from ``key=value``; the key may be spelt as in a run's settings."""
    prefixes = (f"attack.args.{attack}.", f'attack.args."{attack}".')
    keys = [override.removeprefix(prefixes[0]).removeprefix(prefixes[1]) for override in overrides]
    spelt_out = [f'attack.args."{attack}".{key}' for key in keys]
    return load_settings(ExperimentSettings, {}, spelt_out).attack.args.get(attack, {})
