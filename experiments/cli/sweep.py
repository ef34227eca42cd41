"""``fl-sim sweep``."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands import complete_sweep, console, one_line_errors, output_folder, the_same_again

EXAMPLES = (
    "Examples:\n\n"
    "[cyan]fl-sim sweep defences --dry-run[/cyan]   the runs, and what they will cost\n\n"
    "[cyan]fl-sim sweep defences --out runs/defences[/cyan]   if it is stopped, the same command goes on\n\n"
    "[cyan]fl-sim sweep my-sweep.toml --jobs 4[/cyan]   four runs at a time"
)


def sweep(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PRESET | FILE.toml", help="What to run (docs/sweeps.md).", autocompletion=complete_sweep
        ),
    ],
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of every run; may be repeated.",
            rich_help_panel="What to run",
        ),
    ] = [],  # noqa: B006 (as above)
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the runs: new, empty, or one of this sweep, which then goes on.",
            show_default="runs/PRESET-TIME",
            rich_help_panel="What to write",
        ),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check every run, print the plan and its cost, and leave nothing behind.",
            rich_help_panel="What to run",
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs at a time.",
            show_default="as many as keep the processors busy; with a GPU 1",
            rich_help_panel="Resources",
        ),
    ] = None,
) -> None:
    """Launch many runs that differ in a few settings, and report what leaked in each: one table, one report.

    PRESET is a sweep that fl-sim list shows, FILE.toml one of your own.

    Writes a folder with a run directory for every run, sweep.csv with a row for every run and attack, and report.html.
    """
    folder = output_folder(out, Path(source).stem)
    with one_line_errors(lambda: the_same_again(out, folder), with_ray=True):
        from experiments.sweep.command import dry_run, run_sweep

        if dry:
            dry_run(source, overrides, folder, jobs, console)
            return
        code = run_sweep(source, overrides, folder, jobs, console)
    raise typer.Exit(code)
