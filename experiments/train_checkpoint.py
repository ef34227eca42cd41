"""Train a small checkpoint, such as the demo's, on photographs that the demo's clients do not hold.

``python -m experiments.train_checkpoint`` makes ``experiments/checkpoints/demo.safetensors`` again; on one CPU core it
takes about twenty minutes. ``--help`` shows the options for other networks. Random crops at several scales, a
DDPM with linear noise schedule (arXiv 2006.11239), Adam with warm-up and cosine decay, an exponential moving average
of the weights.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.progress import track
from torch import Tensor

from experiments.checkpoint import BUNDLED, load_checkpoint, save_checkpoint
from experiments.commands import expand_home, one_line_errors
from fl_sim import diffusion, draws
from fl_sim.checkpoint import Checkpoint
from fl_sim.config import SettingsError
from fl_sim.draws import derive_seed
from fl_sim.files import write_atomically
from fl_sim.images.bundled import TRAINING_PHOTOGRAPHS, photograph
from fl_sim.images.pixels import to_tensor
from fl_sim.network import ConfigError, build_model, count_parameters, unet_config

LEARNING_RATE = 1e-3
WARM_UP_STEPS = 100
AVERAGING = 0.005


def train(
    model_config: dict[str, Any], steps: int, batch_size: int, crops_per_side: Sequence[int], seed: int
) -> Checkpoint:
    """Train a U-Net from random initial weights; the same arguments give the same weights on a CPU.

    ``crops_per_side``: the scales of the photographs, as how many images of the network's size fit along the shorter
    side. The fewer fit, the more of a photograph an image shows.
    """
    scheduler_config = diffusion.scheduler_config()
    image_size = model_config["sample_size"]
    scheduler = diffusion.build_scheduler(scheduler_config)
    torch.manual_seed(derive_seed(seed, "weights"))
    model = build_model(model_config)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, steps))
    pictures = scaled_photographs(image_size, crops_per_side)
    generator = draws.seeded_generator(derive_seed(seed, "batches"))
    for _ in track(range(steps), description="training"):
        images = torch.stack([_random_crop(pictures, image_size, generator) for _ in range(batch_size)])
        noise = torch.randn(images.shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        optimizer.zero_grad()
        diffusion.loss(model, scheduler, images, noise, timesteps).backward()
        optimizer.step()
        schedule.step()
        for name, value in model.state_dict().items():
            average[name].lerp_(value, AVERAGING)
    notes = {"photographs": list(TRAINING_PHOTOGRAPHS), "steps": steps, "batch_size": batch_size, "seed": seed}
    return Checkpoint(average, model_config, diffusion.DiffusionTask.on(scheduler_config), notes)


def _learning_rate_factor(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def scaled_photographs(image_size: int, crops_per_side: Sequence[int]) -> list[Tensor]:
    """Every training photograph at every scale, each float [3,H,W] in [-1, 1]."""
    pictures = []
    for picture in map(photograph, TRAINING_PHOTOGRAPHS):
        for crops in crops_per_side:
            scale = crops * image_size / min(picture.size)
            size = (round(picture.width * scale), round(picture.height * scale))
            pictures.append(to_tensor([picture.resize(size, Image.Resampling.LANCZOS)])[0])
    return pictures


def _random_crop(pictures: list[Tensor], size: int, generator: torch.Generator) -> Tensor:
    """A square [3,size,size] of a random picture, mirrored with probability 1/2."""

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    picture = pictures[draw(len(pictures))]
    top, left = draw(picture.shape[1] - size + 1), draw(picture.shape[2] - size + 1)
    crop = picture[:, top : top + size, left : left + size]
    return crop.flip(-1) if draw(2) else crop


def _network(image_size: int, channels: Sequence[int], layers: int, attention: bool) -> dict[str, Any]:
    """The configuration of a U-Net that can be trained; SettingsError if there is none."""
    try:
        config = unet_config(image_size, 3, tuple(channels), layers, attention=attention)
        diffusion.check_network(config, diffusion.scheduler_config(), (3, image_size, image_size))
    except ConfigError as error:
        named = ",".join(map(str, channels))
        raise SettingsError(f"--image-size {image_size} --channels {named}: {error}") from error
    return config


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers from 1, between commas; SettingsError if they are not."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise SettingsError(f"{option} {text}: allowed: whole numbers from 1, between commas")
    return [int(word) for word in words]


def _check_output(path: Path) -> None:
    """Before hours of training: the file can be written, and replaces nothing but a checkpoint.

    Raises:
        SettingsError: if something else is there.
        OSError: if the file cannot be written.
    """
    if path.is_dir():
        raise SettingsError(f"--out {path}: a folder; allowed: a file")
    if path.exists():
        try:
            load_checkpoint(path)
        except SettingsError as error:
            raise SettingsError(f"--out {path}: not a checkpoint; allowed: a new file, or one to replace") from error
    write_atomically(path.with_name(f".{path.name}.trial"), Path.touch)
    path.with_name(f".{path.name}.trial").unlink()


def main(
    image_size: Annotated[int, typer.Option(min=11, max=1024, help="Side of the images in pixels.")] = 16,
    channels: Annotated[
        str, typer.Option(metavar="N,…", help="Channels of the network's levels, each a multiple of 8.")
    ] = "32,64",
    layers: Annotated[int, typer.Option(min=1, help="Residual blocks in every level.")] = 1,
    attention: Annotated[bool, typer.Option("--attention", help="Attention in the innermost level.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 5000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a step.")] = 32,
    crops: Annotated[
        str,
        typer.Option(metavar="N,…", help="Scales of the photographs: images that fit along the shorter side."),
    ] = "3,4,6",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, crops, noise and timesteps.")] = 0,
    out: Annotated[Path, typer.Option(help="The checkpoint to write.", show_default="the bundled one")] = BUNDLED,
) -> None:
    """Train a DDPM on bundled photographs. On a CPU the same options give the same file."""
    with one_line_errors("stopped; nothing was written"):
        torch.set_num_threads(1)
        config = _network(image_size, _numbers("--channels", channels), layers, attention)
        crops_per_side, out = _numbers("--crops", crops), expand_home(out)
        _check_output(out)
        checkpoint = train(config, steps, batch_size, crops_per_side, seed)
        save_checkpoint(out, checkpoint)
        typer.echo(f"wrote {out}: {count_parameters(checkpoint.weights.values()):,} parameters")


if __name__ == "__main__":
    typer.run(main)
