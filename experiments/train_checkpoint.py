"""Train the small checkpoint that the demo attacks, on photographs that the demo's clients do not hold.

``python -m experiments.train_checkpoint`` makes ``experiments/checkpoints/demo.safetensors`` again; on one CPU core it
takes about a quarter of an hour. Random crops at several scales, a DDPM with linear noise schedule (arXiv 2006.11239),
Adam with warm-up and cosine decay, an exponential moving average of the weights.
"""

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.progress import track
from torch import Tensor

from experiments.bench.cases import NETWORKS
from experiments.checkpoint import BUNDLED, save_checkpoint
from fl_sim import diffusion, draws
from fl_sim.checkpoint import Checkpoint
from fl_sim.draws import derive_seed
from fl_sim.images.bundled import TRAINING_PHOTOGRAPHS, photograph
from fl_sim.images.pixels import to_tensor
from fl_sim.network import build_model, count_parameters

CROPS_PER_SIDE = (3, 4, 6)
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
WARM_UP_STEPS = 100
AVERAGING = 0.005


def train(model_config: dict[str, Any], steps: int, seed: int) -> Checkpoint:
    """Train a U-Net from random initial weights; the same arguments give the same weights on a CPU."""
    scheduler_config = diffusion.scheduler_config()
    image_size = model_config["sample_size"]
    scheduler = diffusion.build_scheduler(scheduler_config)
    torch.manual_seed(derive_seed(seed, "weights"))
    model = build_model(model_config)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, steps))
    pictures, generator = _scaled_photographs(image_size), draws.seeded_generator(derive_seed(seed, "batches"))
    for _ in track(range(steps), description="training"):
        images = torch.stack([_random_crop(pictures, image_size, generator) for _ in range(BATCH_SIZE)])
        noise = torch.randn(images.shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (BATCH_SIZE,), generator=generator)
        optimizer.zero_grad()
        diffusion.loss(model, scheduler, images, noise, timesteps).backward()
        optimizer.step()
        schedule.step()
        for name, value in model.state_dict().items():
            average[name].lerp_(value, AVERAGING)
    notes = {"photographs": list(TRAINING_PHOTOGRAPHS), "steps": steps, "batch_size": BATCH_SIZE, "seed": seed}
    return Checkpoint(average, model_config, diffusion.DiffusionTask.on(scheduler_config), notes)


def _learning_rate_factor(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _scaled_photographs(image_size: int) -> list[Tensor]:
    """Every training photograph at every scale, each float [3,H,W] in [-1, 1]."""
    pictures = []
    for picture in map(photograph, TRAINING_PHOTOGRAPHS):
        for crops in CROPS_PER_SIDE:
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


def main(
    out: Annotated[Path, typer.Option(help="The checkpoint to write.")] = BUNDLED,
    network: Annotated[str, typer.Option(help=f"One of the benchmark's: {', '.join(NETWORKS)}.")] = "16",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of weights, crops, noise and timesteps.")] = 0,
) -> None:
    """Train a DDPM on bundled photographs and write it as a checkpoint."""
    torch.set_num_threads(1)
    if network not in NETWORKS:
        raise typer.BadParameter(f"{network}: allowed: {', '.join(NETWORKS)}", param_hint="--network")
    checkpoint = train(NETWORKS[network], steps, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, checkpoint)
    typer.echo(f"wrote {out}: {count_parameters(checkpoint.weights.values()):,} parameters")


if __name__ == "__main__":
    typer.run(main)
