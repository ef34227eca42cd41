import numpy as np
import piqa
import pytest
from torch import Tensor

from experiments.metrics.ssim import SIGMA, SSIM, WINDOW
from tests.experiments.metrics.pairs import pair, waves


def test_ssim_of_a_single_window_is_its_definition() -> None:
    """Eleven pixels a side leave one window per channel: Wang et al. 2004, eq. 13, written out."""
    first, second = pair(1, WINDOW)
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    expected = []
    for x, y in zip(first[:, 0].double().numpy(), second[:, 0].double().numpy(), strict=True):
        mean_x, mean_y = (window * x).sum(), (window * y).sum()
        variances = (window * (x - mean_x) ** 2).sum() + (window * (y - mean_y) ** 2).sum()
        covariance = (window * (x - mean_x) * (y - mean_y)).sum()
        luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        expected.append(luminance * (2 * covariance + 9e-4) / (variances + 9e-4))
    assert SSIM()(first, second).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("images", [waves(1), waves(3), pair(3, 24)], ids=["grey", "colour", "noise"])
def test_ssim_is_that_of_piqa(images: tuple[Tensor, Tensor]) -> None:
    other = piqa.SSIM(n_channels=images[0].shape[1], reduction="none").double()
    assert SSIM()(*images).tolist() == pytest.approx(other(*(x.double() for x in images)).tolist(), abs=1e-5)
