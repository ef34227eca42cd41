"""``fl-sim train-prior``."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands import Device, console, expand_home, how_to_go_on, numbers, one_line_errors, unfinished

EXAMPLES = (
    "Examples:\n\n"
    "[cyan]fl-sim train-prior --data ~/photos --image-size 32 --out prior.safetensors[/cyan]\n\n"
    "[cyan]fl-sim train-prior --data digits --skip 898 --grey --classes --out digits.safetensors[/cyan]   clients may "
    "hold the first 898\n\n"
    "[cyan]fl-sim train-prior --data bundled --horizontal-flip --dtype float16 --out half.safetensors[/cyan]"
)


def train_prior(
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME|FOLDER",
            help="Public images: a folder, or any other value of data.name.",
            rich_help_panel="Images",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The checkpoint to write; samples go to FILE.png.", rich_help_panel="What to write"
        ),
    ],
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of \\[data], such as limit=500.", rich_help_panel="Images"
        ),
    ] = [],  # noqa: B006 (as above)
    skip: Annotated[
        int, typer.Option(min=0, help="Leave out the first images, for clients to hold.", rich_help_panel="Images")
    ] = 0,
    image_size: Annotated[
        int, typer.Option(min=11, max=1024, help="Side of the images in pixels.", rich_help_panel="Images")
    ] = 16,
    grey: Annotated[
        bool, typer.Option("--grey", help="One channel in place of RGB.", rich_help_panel="Images")
    ] = False,
    classes: Annotated[
        bool,
        typer.Option("--classes", help="Class-conditional: the images' labels are told.", rich_help_panel="Images"),
    ] = False,
    label_dropout: Annotated[
        float,
        typer.Option(
            min=0.001, max=0.999, help="Share of labels that become the null class.", rich_help_panel="Training"
        ),
    ] = 0.1,
    crops: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Scales of bundled photographs: images that fit along the shorter side.",
            show_default="3,4,6",
            rich_help_panel="Images",
        ),
    ] = None,
    flip: Annotated[
        bool,
        typer.Option("--horizontal-flip", help="Mirror half of the images left and right.", rich_help_panel="Images"),
    ] = False,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A known network (fl-sim list), in the place of the next three options.",
            rich_help_panel="Network",
        ),
    ] = None,
    block_out_channels: Annotated[
        str,
        typer.Option(
            metavar="N,…", help="Channels of the network's levels, each a multiple of 8.", rich_help_panel="Network"
        ),
    ] = "32,64",
    layers_per_block: Annotated[
        int, typer.Option(min=1, max=64, help="Residual blocks in every level.", rich_help_panel="Network")
    ] = 1,
    attention: Annotated[
        bool, typer.Option("--attention", help="Attention in the innermost level.", rich_help_panel="Network")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.", rich_help_panel="Training")] = 5000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a step.", rich_help_panel="Training")] = 32,
    lr: Annotated[
        float, typer.Option(min=1e-12, help="Highest learning rate of Adam.", rich_help_panel="Training")
    ] = 1e-3,
    warm_up_steps: Annotated[
        int, typer.Option(min=1, help="Steps until it is reached; then it decays.", rich_help_panel="Training")
    ] = 100,
    ema_decay: Annotated[
        float, typer.Option(min=0, max=0.999999, help="Of the average of the weights.", rich_help_panel="Training")
    ] = 0.995,
    seed: Annotated[
        int, typer.Option(min=0, help="Of weights, crops, noise and timesteps.", rich_help_panel="Training")
    ] = 0,
    dtype: Annotated[
        str, typer.Option(help="Of the weights in the file: float32 or float16.", rich_help_panel="What to write")
    ] = "float32",
    samples: Annotated[
        int, typer.Option(min=0, max=1024, help="Images in the picture of samples.", rich_help_panel="What to write")
    ] = 16,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Torch threads.", rich_help_panel="Resources")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was broken off.", rich_help_panel="Going on")
    ] = False,
    every: Annotated[
        float,
        typer.Option(
            "--save-every", metavar="SECONDS", min=0, help="How often it is kept.", rich_help_panel="Going on"
        ),
    ] = 60.0,
) -> None:
    """Train a diffusion model on public images: a prior for attacks. On a CPU the same options give the same file.

    Writes FILE, a picture of samples beside it, and until it is done FILE.unfinished.
    """
    file = expand_home(out)
    with one_line_errors(lambda: how_to_go_on(unfinished(file))):
        from experiments.train_prior import parse_training
        from experiments.train_prior import train_prior as train

        training = parse_training(
            source={
                "data": str(expand_home(Path(data))),
                "settings": overrides,
                "skip": skip,
                "image_size": image_size,
                "grey": grey,
                "classes": classes,
                "crops": numbers("--crops", crops) if crops else (),
                "horizontal_flip": flip,
            },
            network_name=network,
            block_out_channels=numbers("--block-out-channels", block_out_channels),
            layers_per_block=layers_per_block,
            attention=attention,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            warm_up_steps=warm_up_steps,
            ema_decay=ema_decay,
            label_dropout=label_dropout,
            seed=seed,
            dtype=dtype,
            samples=samples,
        )
        train(training, file, device, threads, console, resume, every)
