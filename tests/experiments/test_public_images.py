import pytest
import torch

from experiments.public_images import check_disjoint
from fl_sim.config import SettingsError


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_a_private_image_among_the_public_ones_is_one_line() -> None:
    private = images(5, 0)
    check_disjoint(images(7, 1), private)
    with pytest.raises(SettingsError, match="public images: 2 of 9 are private images as well"):
        check_disjoint(torch.cat([images(7, 1), private[[1, 3]]]), private)
