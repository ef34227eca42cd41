"""Random changes of an image that leave what it shows: a classifier's opinion of it should survive them.

Differentiable. The kinds are those of the code of Diff-MI (github.com/Ouxiang-Li/Diff-MI).
"""

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from attacks.attack import AttackError
from attacks.model_inversion.arguments import Arguments


class Augmentation(Arguments):
    """Which changes, how strong, how often; they are drawn anew for every copy of every image."""

    copies: int = Field(1, ge=1, le=1024, description="changed copies of every image")
    least_crop: float = Field(1.0, gt=0, le=1, description="least share of the area that a random crop keeps")
    rotation: float = Field(0.0, ge=0, le=180, description="largest angle in degrees, either way")
    flip: float = Field(0.0, ge=0, le=1, description="probability of mirroring left and right")
    brightness: float = Field(0.0, ge=0, le=1, description="largest relative change of the brightness")
    contrast: float = Field(0.0, ge=0, le=1, description="largest relative change of the contrast")
    colour_probability: float = Field(1.0, ge=0, le=1, description="probability of a change of brightness and contrast")
    blur_radius: int = Field(
        0, ge=0, le=1024, description="of the Gaussian blur's window, in pixels; 3: a window of 7x7"
    )
    blur_sigma: float = Field(1.0, gt=0, description="standard deviation of the blur in pixels")
    blur_probability: float = Field(0.0, ge=0, le=1, description="probability of a blur")

    def check(self, image_shape: Sequence[int]) -> None:
        """AttackError if images [C,H,W] cannot be changed so."""
        shorter = min(image_shape[1:])
        if self.blur_radius and self.blur_probability and self.blur_radius >= shorter:
            raise AttackError(
                f"augmentation.blur_radius = {self.blur_radius}: the images' shorter side has {shorter} pixels; "
                "allowed: less"
            )

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed copies [copies x N,C,H,W] of images [N,C,H,W], clipped to [-1, 1]: one of each, then the next."""
        copies = images.repeat(self.copies, 1, 1, 1)
        moved = self._move(copies, generator)
        return self._blur(self._recolour(moved, generator), generator).clamp(-1, 1)

    def _move(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crop, rotate and mirror, by one bilinear interpolation."""
        if self.least_crop == 1 and self.rotation == 0 and self.flip == 0:
            return images
        count = len(images)
        side = uniform(count, self.least_crop, 1.0, generator).sqrt()
        angle = uniform(count, -math.radians(self.rotation), math.radians(self.rotation), generator)
        mirror = 1 - 2 * (uniform(count, 0.0, 1.0, generator) < self.flip).float()
        x, y = ((1 - side) * uniform(count, -1.0, 1.0, generator) for _ in range(2))
        cos, sin = side * angle.cos(), side * angle.sin()
        transforms = torch.stack([mirror * cos, -sin, x, mirror * sin, cos, y], dim=1).reshape(count, 2, 3)
        grid = nn.functional.affine_grid(transforms.to(images), list(images.shape), align_corners=False)
        return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _recolour(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Scale brightness, and contrast about the image's mean, both of pixels in [0, 1]."""
        if self.brightness == 0 and self.contrast == 0:
            return images
        count = len(images)
        changed = (uniform(count, 0.0, 1.0, generator) < self.colour_probability).float()
        brightness = 1 + changed * uniform(count, -self.brightness, self.brightness, generator)
        contrast = 1 + changed * uniform(count, -self.contrast, self.contrast, generator)
        pixels = (images + 1) / 2 * _per_image(brightness, images)
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        return 2 * (mean + (pixels - mean) * _per_image(contrast, images)) - 1

    def _blur(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.blur_radius == 0 or self.blur_probability == 0:
            return images
        blurred = gaussian_blur(images, [2 * self.blur_radius + 1] * 2, [self.blur_sigma] * 2)
        chosen = (uniform(len(images), 0.0, 1.0, generator) < self.blur_probability).float()
        return torch.lerp(images, blurred, _per_image(chosen, images))


def uniform(count: int, least: float, largest: float, generator: torch.Generator) -> Tensor:
    """Numbers [count] drawn uniformly from ``least`` to ``largest``, on the CPU."""
    return least + (largest - least) * torch.rand(count, generator=generator)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images).reshape(-1, 1, 1, 1)
