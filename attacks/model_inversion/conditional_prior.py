"""The class-conditional diffusion model that is trained on pseudo-labelled public images, and its guided prediction.

Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): in training some labels become a null label, so that
one network predicts the noise with and without a label, and sampling may move away from the latter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor, nn

from attacks.model_inversion.arguments import Arguments
from attacks.model_inversion.target import Target
from fl_sim import diffusion, network

PIXEL_LEVEL = 2 / 255
"""The distance of two levels of 8-bit pixels in [-1, 1]."""


class PriorTraining(Arguments):
    """The network, and how it is trained."""

    steps: int = Field(50_000, ge=1, description="optimiser steps")
    batch_size: int = Field(
        300, ge=1, le=65_536, description="images in a step (the authors': 150 on each of two GPUs)"
    )
    lr: float = Field(1e-4, gt=0, description="AdamW's learning rate, without weight decay")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="of the moving average of the weights; it warms up")
    label_dropout: float = Field(0.1, ge=0, lt=1, description="share of labels that become the null label")
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring an image left and right")
    dequantisation: float = Field(1.0, ge=0, description="width of the uniform noise on pixels, in 8-bit levels")
    block_out_channels: tuple[int, ...] = Field(
        (128, 256, 384, 512), min_length=1, max_length=16, description="of the U-Net"
    )
    layers_per_block: int = Field(3, ge=1, le=64, description="of the U-Net")
    norm_num_groups: int = Field(32, ge=1, description="of the U-Net")
    unet: dict[str, Any] = Field(
        {
            "down_block_types": ["DownBlock2D"] * 2 + ["AttnDownBlock2D"] * 2,
            "up_block_types": ["AttnUpBlock2D"] * 2 + ["UpBlock2D"] * 2,
            "resnet_time_scale_shift": "scale_shift",
            "attention_head_dim": 64,
        },
        description="further keys of diffusers.UNet2DModel",
    )

    def check(self, num_classes: int, image_shape: Sequence[int]) -> None:
        """ConfigError if there is no such U-Net for images [C,H,W] of ``num_classes``."""
        channels, height, width = image_shape
        config = self.unet_config(image_shape, num_classes)
        if config["num_class_embeds"] != num_classes + 1:
            raise network.ConfigError(
                f"training.unet.num_class_embeds = {config['num_class_embeds']!r}: it follows from the classifier; "
                "allowed: unset"
            )
        diffusion.check_network(config, diffusion.scheduler_config(), (channels, height, width))

    def unet_config(self, image_shape: Sequence[int], num_classes: int) -> dict[str, Any]:
        """Configuration of the U-Net for images [C,H,W]; the last of ``num_classes`` + 1 labels is null."""
        channels, height, width = image_shape
        sizes = (self.block_out_channels, self.layers_per_block, self.norm_num_groups)
        unet = network.unet_config((height, width), channels, *sizes, attention=True)
        return unet | {"num_class_embeds": num_classes + 1} | self.unet


@dataclass(frozen=True)
class ConditionalPrior:
    """A class-conditional diffusion model; ``null_label`` stands for no class, ``config`` builds the network."""

    model: nn.Module
    scheduler: DDPMScheduler
    null_label: int
    config: dict[str, Any]

    def noise(self, x_t: Tensor, timestep: int, labels: Tensor, guidance: float) -> Tensor:
        """The guided noise w e(x_t, t, c) - (w - 1) e(x_t, t, null) [B,C,H,W] with w = ``guidance``; differentiable.

        ``x_t`` [B,C,H,W] is at one ``timestep`` 0..T-1, ``labels`` int64 [B]. The model is called once, with
        2 B images. This is eq. 6 of arXiv 2207.12598, whose w is one less.
        """
        at = torch.full((2 * len(x_t),), timestep, device=x_t.device)
        both = torch.cat([labels, torch.full_like(labels, self.null_label)])
        given, without = diffusion.predict(self.model, x_t.repeat(2, 1, 1, 1), at, both).chunk(2)
        return guidance * given - (guidance - 1) * without

    def copy(self, target: Target) -> "ConditionalPrior":
        """The same with a network of its own, whose images ``target`` counts."""
        model = _build(self.config, 0, target)
        model.load_state_dict(self.model.state_dict())
        return replace(self, model=model.eval().requires_grad_(False))


def train_prior(
    target: Target, chosen: Tensor, training: PriorTraining, generator: torch.Generator
) -> ConditionalPrior:
    """Train a U-Net on the public images of the target at the indices ``chosen`` int64 [K,n], n for every class.

    The loss is eq. 14 of arXiv 2006.11239, over T = 1000 timesteps. The weights are the moving average.

    Raises:
        ConfigError: if there is no such U-Net, or none for images of this size.
    """
    images = target.public[chosen.flatten()]
    labels = torch.arange(len(chosen), device=images.device).repeat_interleave(chosen.shape[1])
    training.check(target.num_classes, images.shape[1:])
    config, schedule = training.unet_config(images.shape[1:], target.num_classes), diffusion.scheduler_config()
    model = _build(config, int(torch.randint(2**62, (), generator=generator)), target)
    prior = ConditionalPrior(model, diffusion.build_scheduler(schedule), target.num_classes, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=0.0)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    for decay in network.ema_decays(training.ema_decay, training.steps):
        optimizer.zero_grad()
        _batch_loss(prior, images, labels, training, generator).backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 1 - decay)
    model.load_state_dict(average)
    model.eval().requires_grad_(False)
    return prior


def _build(config: dict[str, Any], seed: int, target: Target) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return target.counted(network.build_model(config).to(target.device))


def _batch_loss(
    prior: ConditionalPrior, images: Tensor, labels: Tensor, training: PriorTraining, generator: torch.Generator
) -> Tensor:
    count, shape = training.batch_size, images.shape[1:]
    chosen = torch.randint(len(images), (count,), generator=generator).to(images.device)
    mirrored = torch.rand(count, generator=generator) < training.flip
    offset = training.dequantisation * PIXEL_LEVEL * (torch.rand(count, *shape, generator=generator) - 0.5)
    dropped = torch.rand(count, generator=generator) < training.label_dropout
    noise = torch.randn(count, *shape, generator=generator)
    timesteps = torch.randint(prior.scheduler.config.num_train_timesteps, (count,), generator=generator)
    x0 = images[chosen]
    x0 = torch.where(mirrored[:, None, None, None].to(x0.device), x0.flip(-1), x0) + offset.to(x0)
    told = labels[chosen].masked_fill(dropped.to(labels.device), prior.null_label)
    return diffusion.loss(prior.model, prior.scheduler, x0, noise.to(x0), timesteps.to(x0.device), told)
