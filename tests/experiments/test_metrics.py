from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio
from torch import Tensor
from torchvision.models import alexnet

from experiments import metrics


def pair(channels: int = 3, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(4, channels, size, size, generator=generator)
    spread = torch.tensor([0.01, 0.05, 0.2, 0.5]).reshape(4, 1, 1, 1)
    return first, (first + spread * torch.randn(first.shape, generator=generator)).clamp(0, 1)


def as_arrays(images: Tensor) -> list[np.ndarray]:
    return list(images.double().permute(0, 2, 3, 1).numpy())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty torch cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for cached in (metrics._backbone_file, metrics._lpips_network):
        cached.cache_clear()
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    for cached in (metrics._backbone_file, metrics._lpips_network):
        cached.cache_clear()


def test_mse_and_psnr_are_those_of_skimage() -> None:
    first, second = pair()
    arrays = list(zip(as_arrays(first), as_arrays(second), strict=True))
    assert metrics.mse(first, second).tolist() == pytest.approx([mean_squared_error(x, y) for x, y in arrays])
    expected = [peak_signal_noise_ratio(x, y, data_range=1) for x, y in arrays]
    assert metrics.psnr(first, second).tolist() == pytest.approx(expected)


def test_ssim_of_a_single_window_is_its_definition() -> None:
    """Eleven pixels a side leave one window per channel: Wang et al. 2004, eq. 13, written out."""
    first, second = pair(1, metrics.SSIM_WINDOW)
    offsets = np.arange(metrics.SSIM_WINDOW) - metrics.SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * metrics.SSIM_SIGMA**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    expected = []
    for x, y in zip(first[:, 0].double().numpy(), second[:, 0].double().numpy(), strict=True):
        mean_x, mean_y = (window * x).sum(), (window * y).sum()
        variances = (window * (x - mean_x) ** 2).sum() + (window * (y - mean_y) ** 2).sum()
        covariance = (window * (x - mean_x) * (y - mean_y)).sum()
        luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        expected.append(luminance * (2 * covariance + 9e-4) / (variances + 9e-4))
    assert metrics.ssim(first, second).tolist() == pytest.approx(expected)


def test_equal_images_have_no_distance() -> None:
    first, _ = pair()
    assert metrics.mse(first, first).tolist() == [0.0] * 4
    assert metrics.psnr(first, first).tolist() == [float("inf")] * 4
    assert metrics.ssim(first, first).tolist() == pytest.approx([1.0] * 4)


def test_a_batch_is_assigned_by_its_total_error() -> None:
    first, second = pair()
    assert metrics.assign(first, second[[2, 0, 3, 1]]) == [1, 3, 0, 2]


def test_lpips_without_weights_says_which_file_is_missing(hub: Path) -> None:
    first, second = pair()
    with pytest.raises(metrics.MetricUnavailableError, match=r"put alexnet-owt-\w+\.pth in "):
        metrics.lpips(first, second)
    assert list(metrics.unavailable()) == ["lpips"]


@pytest.mark.parametrize(("channels", "size"), [(3, 16), (1, 16), (3, 64)])
def test_lpips_takes_its_backbone_from_the_cache(hub: Path, channels: int, size: int) -> None:
    weights = {name: value for name, value in alexnet(weights=None).state_dict().items() if "features" in name}
    torch.save(weights, hub / metrics._backbone_file().name)
    first, second = pair(channels, size)
    assert metrics.unavailable() == {}
    assert metrics.lpips(first, first).tolist() == [0.0] * 4
    assert (metrics.lpips(first, second) > 0).all()
    assert torch.equal(metrics._lpips_network().net.slice1[0].weight, weights["features.0.weight"])


def test_lpips_sees_three_channels_and_keeps_the_shape_of_an_image() -> None:
    grey = torch.rand(2, 1, 28, 14, generator=torch.Generator().manual_seed(0))
    seen = metrics._for_lpips(grey)
    assert seen.shape == (2, 3, 128, 64)
    assert torch.equal(seen[:, 0], seen[:, 2])
    assert metrics._for_lpips(torch.rand(1, 3, 64, 100)).shape == (1, 3, 64, 100)


def test_an_original_is_flat_where_its_mean_colour_looks_like_it() -> None:
    halves = torch.full((1, 3, 12, 12), 0.5)
    halves[..., 6:] += 0.2  # 0.1 off the mean everywhere
    coloured = torch.tensor([0.1, 0.5, 0.9]).reshape(1, 3, 1, 1).expand(1, 3, 12, 12)
    assert metrics.flat_psnr(torch.cat([halves, coloured])).tolist() == pytest.approx([20.0, float("inf")], abs=1e-5)
