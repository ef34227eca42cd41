"""What ``flwr run`` starts: a run on clients that Flower has started, from a run config instead of a command line."""

import shlex

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from experiments.batch_trial import try_first_batch
from experiments.experiment import prepare
from experiments.launch import run_on
from experiments.progress import run_progress
from experiments.run_directory import RunDirectory
from experiments.settings import load_run
from fl_sim.config import SettingsError, flower_run_directory

FLOWERS_OWN = ("federation.client_cpus", "federation.client_gpus", "federation.client_timeout", "ray.address")
"""Settings that only ``fl-sim run`` heeds: under ``flwr run`` Flower starts the clients."""

app = ServerApp()
"""Its run config names a preset (or a TOML file) and overrides."""


@app.main()
def _main(grid: Grid, context: Context) -> None:
    overrides = _overrides(str(context.run_config["overrides"]))
    experiment = prepare(load_run(str(context.run_config["preset"]), overrides))
    try_first_batch(experiment)
    directory = RunDirectory.create(flower_run_directory(context), experiment.settings)
    with run_progress(experiment, directory, Console(emoji=False)) as display:
        run_on(grid, experiment, directory, display)


def _overrides(text: str) -> list[str]:
    """The run config's overrides, split as a shell splits words; SettingsError if one of them would do nothing."""
    try:
        overrides = shlex.split(text)
    except ValueError as error:
        raise SettingsError(f"overrides = {text!r}: {error}") from error
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in FLOWERS_OWN:
            raise SettingsError(
                f"{override}: under flwr run Flower starts the clients; allowed: {key} unset, and Flower's own "
                "--federation-config"
            )
    return overrides
