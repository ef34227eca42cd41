"""How close a reconstruction is: MSE, PSNR, SSIM and LPIPS of images in [0, 1], and which belongs to which original.

Every function takes one or two batches float [N,C,H,W] in [0, 1] and returns one value per image, float64 [N].
"""

import warnings
from functools import cache
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
LPIPS_SIDE = 64
DEFINITIONS = {
    "psnr": "10 log10(1 / MSE) per image, data range 1",
    "ssim": f"Gaussian window {SSIM_WINDOW}x{SSIM_WINDOW}, sigma {SSIM_SIGMA}, data range 1, mean over whole windows",
    "flat_psnr": "PSNR of the original against its own mean colour",
    "lpips": f"AlexNet, version 0.1; images whose shorter side is under {LPIPS_SIDE} px are enlarged until it is "
    f"{LPIPS_SIDE} px long (bicubic)",
}


class MetricUnavailableError(RuntimeError):
    """A metric that cannot be computed on this machine; the message says why in one line."""


def mse(first: Tensor, second: Tensor) -> Tensor:
    """MSE = mean over channels and pixels of (first - second)^2."""
    return (first.double() - second.double()).square().flatten(1).mean(1)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """PSNR = -10 log10(MSE) in dB, for a peak of 1; infinite for equal images."""
    return -10 * mse(first, second).log10()


def flat_psnr(images: Tensor) -> Tensor:
    """PSNR in dB of each image against its own mean colour, one value per channel; infinite for a constant image."""
    flat = images.double().mean((-2, -1), keepdim=True).expand_as(images)
    return psnr(images, flat)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13) with that paper's Gaussian window and constants; sides >= 11 px.

    It averages over windows that lie wholly inside the image, so there is no padding.
    """
    from skimage.metrics import structural_similarity

    values = [
        structural_similarity(
            x.numpy(),
            y.numpy(),
            data_range=1,
            channel_axis=0,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
        )
        for x, y in zip(first.double(), second.double(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def lpips(first: Tensor, second: Tensor) -> Tensor:
    """Learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924), grey images as RGB.

    Raises:
        MetricUnavailableError: if the backbone's weights are not on this machine; they are never downloaded here.
    """
    network = _lpips_network()
    with torch.no_grad():
        return network(_for_lpips(first), _for_lpips(second)).double().reshape(len(first))


def unavailable() -> dict[str, str]:
    """The metrics that cannot be computed on this machine, each with the reason."""
    try:
        _lpips_network()
    except MetricUnavailableError as error:
        return {"lpips": str(error)}
    return {}


def assign(truth: Tensor, reconstructed: Tensor) -> list[int]:
    """For every true image the index of its reconstruction: the permutation with the smallest total MSE."""
    differences = truth.double()[:, None] - reconstructed.double()[None]
    _, columns = linear_sum_assignment(differences.square().flatten(2).mean(2).numpy())
    return columns.tolist()


def _for_lpips(images: Tensor) -> Tensor:
    rgb = (images.float() * 2 - 1).expand(-1, 3, -1, -1)
    height, width = rgb.shape[-2:]
    shorter = min(height, width)
    if shorter >= LPIPS_SIDE:
        return rgb
    size = (round(height * LPIPS_SIDE / shorter), round(width * LPIPS_SIDE / shorter))
    enlarged = nn.functional.interpolate(rgb, size=size, mode="bicubic", align_corners=False)
    return enlarged.clamp(-1, 1)


@cache
def _backbone_file() -> Path:
    from torchvision.models import AlexNet_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.IMAGENET1K_V1.url).name


@cache
def _lpips_network() -> nn.Module:
    """LPIPS with a backbone from torch's cache; the lpips package itself would download it."""
    file = _backbone_file()
    if not file.is_file():
        raise MetricUnavailableError(f"torchvision's AlexNet weights are missing: put {file.name} in {file.parent}")
    from lpips import LPIPS

    with warnings.catch_warnings(action="ignore"):  # lpips calls torchvision in the old way
        network = LPIPS(net="alex", pnet_rand=True, verbose=False)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    for name, parameter in network.net.named_parameters():
        _, layer, kind = name.split(".")
        parameter.data.copy_(weights[f"features.{layer}.{kind}"])
    return network.eval().requires_grad_(False)
