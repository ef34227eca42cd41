import piqa
import pytest
from torch import Tensor, nn

from experiments.metrics.ms_ssim import SIDE, MultiScaleSSIM
from tests.experiments.metrics.pairs import pair, waves


def of_piqa(first: Tensor, second: Tensor) -> list[float]:
    other = piqa.MS_SSIM(n_channels=first.shape[1], reduction="none").double()
    return other(first.double(), second.double()).tolist()


@pytest.mark.parametrize(
    "images", [waves(1, SIDE), waves(3, SIDE + 16), pair(3, SIDE, 2)], ids=["grey", "colour", "noise"]
)
def test_ms_ssim_is_that_of_piqa(images: tuple[Tensor, Tensor]) -> None:
    assert MultiScaleSSIM()(*images).tolist() == pytest.approx(of_piqa(*images), abs=2e-5)


def test_small_images_are_enlarged_to_the_least_that_has_five_scales() -> None:
    images = waves(3, 32)
    enlarged = [nn.functional.interpolate(x, size=(176, 176), mode="bicubic").clamp(0, 1) for x in images]
    assert MultiScaleSSIM()(*images).tolist() == pytest.approx(of_piqa(*enlarged), abs=2e-5)
    oblong = images[0][:, :, :16], images[1][:, :, :16]
    enlarged = [nn.functional.interpolate(x, size=(176, 352), mode="bicubic").clamp(0, 1) for x in oblong]
    assert MultiScaleSSIM()(*oblong).tolist() == pytest.approx(of_piqa(*enlarged), abs=2e-5)
