"""``fl-sim invert``."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands import Device, console, expand_home, one_line_errors, output_folder

EXAMPLES = (
    "Examples:\n\n"
    "[cyan]fl-sim invert classifier.safetensors --public ~/photos --method diff-mi[/cyan]\n\n"
    "[cyan]fl-sim invert classifier.safetensors --public ~/photos --method max-margin --set classes=[0,2][/cyan]"
)


def invert(
    source: Annotated[
        Path, typer.Argument(metavar="CAPTURE|CHECKPOINT", help="A file that holds a trained classifier.")
    ],
    public: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="A folder of images that no client holds; their labels are not read.",
            rich_help_panel="Inversion",
        ),
    ],
    method: Annotated[
        str, typer.Option(metavar="NAME", help="One of those that fl-sim list shows.", rich_help_panel="Inversion")
    ] = "diff-mi",
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="The run's public seed; the method's own follows from it.", rich_help_panel="Inversion"
        ),
    ] = 0,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An argument of the method; may be repeated.",
            rich_help_panel="Inversion",
        ),
    ] = [],  # noqa: B006 (as above)
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the result, new or empty.", show_default="runs/invert-…", rich_help_panel="What to write"
        ),
    ] = None,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Torch threads.", rich_help_panel="Resources")] = 1,
    trusted: Annotated[
        list[str],
        typer.Option(
            "--trust",
            metavar="PACKAGE.MODULE:BUILD",
            help="A network of somebody's own that the file may name: its code is imported. May be repeated.",
            rich_help_panel="Inversion",
        ),
    ] = [],  # noqa: B006 (as above)
) -> None:
    """Reconstruct images of a trained classifier's classes from its weights and public images.

    Writes reconstructions.safetensors and a picture with a row for every class.
    """
    directory = output_folder(out, f"invert-{source.stem}-{method}")
    with one_line_errors("nothing was written"):
        from experiments.invert_offline import invert_classifier

        invert_classifier(
            expand_home(source),
            expand_home(public),
            method,
            seed,
            overrides,
            directory,
            device,
            threads,
            console,
            trusted,
        )
