"""MSE and PSNR: how far pixels are apart."""

from typing import ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from experiments.metrics.metric import Metric


def mse(first: Tensor, second: Tensor) -> Tensor:
    """MSE = mean over channels and pixels of (first - second)^2; float64 [N]."""
    return (first.double() - second.double()).square().flatten(1).mean(1)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """PSNR = -10 log10(MSE) in dB, for a peak of 1; infinite for equal images; float64 [N]."""
    return -10 * mse(first, second).log10()


def flat_psnr(images: Tensor) -> Tensor:
    """PSNR in dB of each image against its own mean colour, one value per channel; infinite for a constant image."""
    flat = images.double().mean((-2, -1), keepdim=True).expand_as(images)
    return psnr(images, flat)


class MSE(Metric):
    """Mean squared error."""

    better: ClassVar[Literal["larger", "smaller"]] = "smaller"
    range: ClassVar[str] = "0 (equal) to 1"
    definition: ClassVar[str] = "mean squared difference over channels and pixels, in [0, 1]"

    @override
    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        return mse(first, second)


class PSNR(Metric):
    """Peak signal-to-noise ratio."""

    better: ClassVar[Literal["larger", "smaller"]] = "larger"
    range: ClassVar[str] = "0 dB to infinity (equal)"
    definition: ClassVar[str] = "10 log10(1 / MSE) per image, data range 1"

    @override
    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        return psnr(first, second)
