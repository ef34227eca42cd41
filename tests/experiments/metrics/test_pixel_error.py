import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio
from torch import Tensor

from experiments.metrics import flat_psnr, mse, psnr
from experiments.metrics.metric import AT_ONCE
from experiments.metrics.pixel_error import MSE, PSNR
from tests.experiments.metrics.pairs import pair


def as_arrays(images: Tensor) -> list[np.ndarray]:
    return list(images.double().permute(0, 2, 3, 1).numpy())


def test_mse_and_psnr_are_those_of_skimage() -> None:
    first, second = pair()
    arrays = list(zip(as_arrays(first), as_arrays(second), strict=True))
    assert mse(first, second).tolist() == pytest.approx([mean_squared_error(x, y) for x, y in arrays])
    expected = [peak_signal_noise_ratio(x, y, data_range=1) for x, y in arrays]
    assert psnr(first, second).tolist() == pytest.approx(expected)


def test_the_metrics_are_these_functions_bit_for_bit() -> None:
    first, second = (torch.cat([images] * AT_ONCE) for images in pair())
    assert torch.equal(MSE()(first, second), mse(first, second))
    assert torch.equal(PSNR()(first, second), psnr(first, second))


def test_an_original_is_flat_where_its_mean_colour_looks_like_it() -> None:
    halves = torch.full((1, 3, 12, 12), 0.5)
    halves[..., 6:] += 0.2  # 0.1 off the mean everywhere
    coloured = torch.tensor([0.1, 0.5, 0.9]).reshape(1, 3, 1, 1).expand(1, 3, 12, 12)
    assert flat_psnr(torch.cat([halves, coloured])).tolist() == pytest.approx([20.0, float("inf")], abs=1e-5)
