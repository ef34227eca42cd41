"""``fl-sim attack``."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands import (
    Device,
    console,
    expand_home,
    how_to_go_on,
    is_one_file,
    one_line_errors,
    output_folder,
    the_same_again,
)

EXAMPLES = (
    "Examples:\n\n"
    "[cyan]fl-sim attack runs/demo/captures/round-0001-client-0003.safetensors --attack residual[/cyan]\n\n"
    "[cyan]fl-sim attack update.safetensors --attack gidm --set recipe=published --out gidm-result[/cyan]\n\n"
    "[cyan]fl-sim attack update.safetensors --attack residual --checkpoint search.log[/cyan]   can be broken off; "
    "the same with [cyan]--resume[/cyan] goes on\n\n"
    "[cyan]fl-sim attack runs/demo[/cyan]   what the run captured and did not attack, into its own table and report\n\n"
    "[cyan]fl-sim attack 'runs/demo/captures/*' --attack residual --attack user-level --workers 4 --out found[/cyan]"
    "   without the images to compare with; if it is stopped, the same command goes on"
)


def attack(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="CAPTURE|DIR|GLOB…",
            help="Capture files (the weights sent and the update that came back), run directories, and patterns.",
        ),
    ],
    names: Annotated[
        list[str],
        typer.Option(
            "--attack",
            metavar="NAME",
            help="One of those that fl-sim list shows; may be repeated. A run directory has its own.",
            rich_help_panel="Attacks",
        ),
    ] = [],  # noqa: B006 (as above)
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The public seed of the run that the captures are from; the attack's own follows from it.",
            show_default="0; a run directory has its own",
            rich_help_panel="Attacks",
        ),
    ] = None,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An argument of the attack, of one of several NAME.KEY=VALUE; may be repeated.",
            rich_help_panel="Attacks",
        ),
    ] = [],  # noqa: B006 (as above)
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the result: new or empty for one attack on one capture.",
            show_default="runs/attack-…",
            rich_help_panel="What to write",
        ),
    ] = None,
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            help="Processes that attack, on Ray. Without it one attack on one capture runs in this process.",
            show_default="2, or attack.workers of the run",
            rich_help_panel="Resources",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Torch threads; more are faster, and may change the last bits of the result.",
            show_default="1, or attack.threads of the run",
            rich_help_panel="Resources",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep the search in this file, to go on if it is broken off.",
            rich_help_panel="Going on",
        ),
    ] = None,
    every: Annotated[
        float,
        typer.Option(
            "--checkpoint-every",
            metavar="SECONDS",
            min=0,
            help="How often the file is written.",
            rich_help_panel="Going on",
        ),
    ] = 300.0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the file that --checkpoint names, to the same result.",
            rich_help_panel="Going on",
        ),
    ] = False,
    trusted: Annotated[
        list[str],
        typer.Option(
            "--trust",
            metavar="PACKAGE.MODULE:BUILD",
            help="A network of somebody's own that the capture may name: its code is imported. May be repeated.",
            rich_help_panel="Attacks",
        ),
    ] = [],  # noqa: B006 (as above)
) -> None:
    """Attack captured updates.

    CAPTURE is a file, whose reconstruction is compared with nothing. DIR is a run: what is found in its captures goes
    into its tables and report. GLOB is a quoted pattern of either.

    Writes a reconstruction and its picture for every capture and attack.
    """
    kept = None if checkpoint is None else expand_home(checkpoint)
    if not (len(paths) == len(names) == 1 and workers is None and is_one_file(expand_home(paths[0]))):
        folder = output_folder(out, "attack")
        with one_line_errors(lambda: the_same_again(out, folder), with_ray=True):
            from experiments.attack_later import Options, attack_all
            from fl_sim.config import SettingsError

            if kept is not None or resume:
                raise SettingsError(
                    "--checkpoint and --resume: keep the search of one attack on one capture; allowed: neither, the "
                    "same command goes on with what is left"
                )
            options = Options(tuple(names), tuple(overrides), seed, out, device, workers, threads, tuple(trusted))
            code = attack_all(paths, options, folder, console)
        raise typer.Exit(code)
    directory = output_folder(out, f"attack-{paths[0].stem}-{names[0]}")
    with one_line_errors(lambda: how_to_go_on(kept)):
        from experiments.attack_offline import Checkpointing, attack_capture

        checkpointing = Checkpointing.of_options(kept, resume, every)
        attack_capture(
            expand_home(paths[0]),
            names[0],
            seed or 0,
            overrides,
            directory,
            device,
            threads or 1,
            console,
            checkpointing,
            trusted,
        )
