import numpy as np
import piqa
import pytest
from scipy.ndimage import convolve
from torch import Tensor

from experiments.metrics.gmsd import GMSD
from tests.experiments.metrics.pairs import pair, waves


def by_definition(first: np.ndarray, second: np.ndarray) -> float:
    """Xue et al. 2014, eq. 1 to 6, of two grey images in [0, 1] with even sides, written out with scipy."""
    prewitt = np.array([[1, 0, -1]] * 3) / 3

    def gradient(image: np.ndarray) -> np.ndarray:
        height, width = image.shape
        half = image.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
        return np.hypot(convolve(half, prewitt, mode="constant"), convolve(half, prewitt.T, mode="constant"))

    x, y = gradient(first), gradient(second)
    similarity = (2 * x * y + 170 / 255**2) / (x**2 + y**2 + 170 / 255**2)
    return float(similarity.std())


@pytest.mark.parametrize("images", [waves(1), pair(1, 16)], ids=["waves", "noise"])
def test_gmsd_is_its_definition(images: tuple[Tensor, Tensor]) -> None:
    arrays = [batch[:, 0].double().numpy() for batch in images]
    expected = [by_definition(x, y) for x, y in zip(*arrays, strict=True)]
    assert GMSD()(*images).tolist() == pytest.approx(expected, abs=1e-6)


def test_gmsd_is_that_of_piqa() -> None:
    images = [batch.double() for batch in waves(3)]
    expected = piqa.GMSD(reduction="none").double()(*images)
    assert GMSD()(*images).tolist() == pytest.approx(expected.tolist(), abs=1e-4)
