"""Images and noisy copies of them, and a photograph and what compression made of it."""

import torch
from torch import Tensor


def pair(channels: int = 3, size: int = 16, count: int = 4) -> tuple[Tensor, Tensor]:
    """``count`` (at most 4) images of uniform noise, [N,C,H,W] in [0, 1], and the same under more and more noise."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(count, channels, size, size, generator=generator)
    spread = torch.tensor([0.01, 0.05, 0.2, 0.5])[:count].reshape(count, 1, 1, 1)
    return first, (first + spread * torch.randn(first.shape, generator=generator)).clamp(0, 1)


def waves(channels: int = 3, size: int = 64) -> tuple[Tensor, Tensor]:
    """Two images [2,C,H,W] in [0, 1] of smooth shapes, and the same moved, paler and with a grid over them.

    They are formulas, so that another library can be asked about the very same ones.
    """
    rows, columns = torch.meshgrid(torch.arange(size).double(), torch.arange(size).double(), indexing="ij")

    def picture(number: int, shift: float) -> Tensor:
        scale = 0.09 + 0.05 * number
        planes = [
            ((rows + shift) * scale).sin() * ((columns - shift) * (scale + 0.03 * c)).cos() for c in range(channels)
        ]
        return 0.5 + 0.4 * torch.stack(planes)

    first = torch.stack([picture(0, 0.0), picture(1, 0.0)])
    second = torch.stack([picture(0, 1.0), picture(1, 3.0)])
    return first, 0.1 + 0.8 * second + 0.05 * ((rows % 7 == 0) & (columns % 5 == 0))
