import piqa
import pytest
import torch
from torch import Tensor, nn

from experiments.metrics.fsim import FSIM, SIDE
from tests.experiments.metrics.pairs import pair, waves


def of_piqa(first: Tensor, second: Tensor) -> list[float]:
    """It takes colour alone; the luminance of grey in three channels is that grey."""
    other = piqa.FSIM(chromatic=first.shape[1] == 3, reduction="none").double()
    return other(*(images.double().expand(-1, 3, -1, -1) for images in (first, second))).tolist()


@pytest.mark.parametrize("images", [waves(1, SIDE), waves(3, SIDE), pair(3, SIDE)], ids=["grey", "colour", "noise"])
def test_fsim_is_that_of_piqa(images: tuple[Tensor, Tensor]) -> None:
    """To the third decimal."""
    assert FSIM()(*images).tolist() == pytest.approx(of_piqa(*images), abs=2e-3)


def test_small_images_are_enlarged() -> None:
    images = waves(3, 32)
    enlarged = [nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1) for x in images]
    assert FSIM()(*images).tolist() == pytest.approx(of_piqa(*enlarged), abs=2e-3)


def test_images_without_any_edge_are_alike() -> None:
    flat = torch.full((1, 3, 16, 16), 0.3)
    assert FSIM()(flat, flat).tolist() == [1.0]
