"""``fl-sim run``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.options import Overrides
from experiments.commands import complete_preset, console, expand_home, one_line_errors, output_folder, what_is_left

if TYPE_CHECKING:
    from experiments.callbacks import Callback

EXAMPLES = (
    "Examples:\n\n"
    "[cyan]fl-sim run demo[/cyan]   two to three minutes on two CPU cores\n\n"
    "[cyan]fl-sim run demo --set model.checkpoint=none --out runs/untrained[/cyan]\n\n"
    "[cyan]fl-sim run demo --set data.name=folder --set data.path=~/photos --set data.partition=iid[/cyan]\n\n"
    "[cyan]fl-sim run demo --set client.update=weights --set strategy.name=FedAvg --set client.local_steps=2[/cyan]\n\n"
    "[cyan]fl-sim run runs/untrained/config.toml --out runs/again[/cyan]   the same run once more\n\n"
    "[cyan]fl-sim run demo --set client.batch_size=4 --dry-run[/cyan]   what it would do, in a few seconds\n\n"
    "[cyan]fl-sim run --resume runs/untrained[/cyan]   goes on with a run that was broken off, to the same result"
)


def run(
    preset: Annotated[
        str | None,
        typer.Argument(
            metavar="[PRESET | FILE.toml]", help="What to run.", show_default="demo", autocompletion=complete_preset
        ),
    ] = None,
    overrides: Overrides = [],  # noqa: B006 (typer reads the default, nobody changes it)
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run directory, new or empty.", show_default="runs/PRESET-TIME", rich_help_panel="What to write"
        ),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, train one batch, print the resolved settings, and leave nothing behind.",
            rich_help_panel="What to write",
        ),
    ] = False,
    resumed: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="DIR",
            help="Go on with the run in this directory, which was broken off, after its last finished round.",
            rich_help_panel="What to run",
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Also write scalars and images for TensorBoard, into DIR/tensorboard.",
            rich_help_panel="What to write",
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Flower's and Ray's own logs.")] = False,
) -> None:
    """Launch a federation and the attacks on it, and report what leaked.

    PRESET is a name that fl-sim list shows, FILE.toml holds settings of your own, such as a run's config.toml.

    Writes a run directory: config.toml, which runs again unchanged, leakage.csv with a row for every image and attack,
    rounds.parquet, captures, reconstructions, the model, and report.html.
    """
    if resumed is not None:
        others = preset is not None or bool(overrides) or out is not None or dry
        _resume(expand_home(resumed), others, tensorboard, verbose)
        return
    preset = preset or "demo"
    directory = output_folder(out, Path(preset).stem)
    if dry:
        with one_line_errors("nothing was written"):
            from experiments.launch import dry_run

            dry_run(preset, overrides, directory)
        return
    with one_line_errors(lambda: what_is_left(directory), with_ray=True):
        from experiments.launch import launch

        launch(preset, overrides, directory, console, verbose, _callbacks(directory, tensorboard))


def _resume(directory: Path, other_options: bool, tensorboard: bool, verbose: bool) -> None:
    with one_line_errors(lambda: what_is_left(directory), with_ray=True):
        from experiments.launch import resume
        from fl_sim.config import SettingsError

        if other_options:
            raise SettingsError(
                f"--resume {directory}: the run goes on with the settings that it was started with; allowed beside it: "
                "--tensorboard, --verbose"
            )
        resume(directory, console, verbose, _callbacks(directory, tensorboard))


def _callbacks(directory: Path, tensorboard: bool) -> "list[Callback]":
    """What is told how the run into ``directory`` goes on; SettingsError if it is not installed."""
    if not tensorboard:
        return []
    from experiments.run_directory import RunDirectory
    from experiments.tensorboard import TensorBoard

    return [TensorBoard(RunDirectory(directory).tensorboard)]
