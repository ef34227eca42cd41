"""Enlarging of images that are too small for a metric."""

from torch import Tensor, nn


def enlarge(images: Tensor, side: int) -> Tensor:
    """Images [N,C,H,W] in [0, 1], enlarged (bicubic) until the shorter side has ``side`` pixels; larger ones as are."""
    height, width = images.shape[-2:]
    shorter = min(height, width)
    if shorter >= side:
        return images
    size = (round(height * side / shorter), round(width * side / shorter))
    return nn.functional.interpolate(images, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
