from hashlib import sha256

import pytest
import torch

from fl_sim.config import DataSettings, SettingsError
from fl_sim.images.bundled import PHOTOGRAPHS, TRAINING_PHOTOGRAPHS, photograph
from fl_sim.images.pixels import centre_crop, to_tensor
from fl_sim.images.sources import list_images

EVERYTHING = tuple(PHOTOGRAPHS)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_tiles_are_detailed_photographs_in_range(size: int) -> None:
    held = list_images(DataSettings(image_size=size))
    images = held.decode(range(len(held)))
    assert images.shape == (88, 3, size, size)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1
    assert (images.std(dim=(1, 2, 3)) > 0.02).float().mean() > 0.9
    assert [held.photographs.count(name) for name in DataSettings().photographs] == [16, 24, 24, 24]


@pytest.mark.parametrize("size", [11, 27, 28, 100])
def test_photographs_are_cut_at_any_size_into_tiles_that_lie_within(size: int) -> None:
    held = list_images(DataSettings(photographs=EVERYTHING, image_size=size))
    last = [max(i for i, owner in enumerate(held.photographs) if owner == name) for name in EVERYTHING]
    images = held.decode(last)
    assert images.shape == (len(EVERYTHING), 3, size, size)
    assert all(held.photographs.count(name) % 4 == 0 for name in EVERYTHING)
    edges = torch.cat([images[:, :, -1], images[:, :, :, -1]], dim=-1)
    assert (edges > -1).flatten(1).any(dim=1).all(), "a tile beyond the edge is black there"


def test_tiles_need_not_be_square() -> None:
    held = list_images(DataSettings(photographs=("astronaut", "coffee"), tiles_per_side=2, image_size=(12, 20)))
    assert held.decode(range(len(held))).shape == (len(held), 3, 12, 20)
    assert held.photographs.count("coffee") == 4, "two by two, though it is wider than high"
    assert held.photographs.count("astronaut") == 6, "40x40 pixels hold three rows of two"
    assert [held.class_of(index) for index in (0, len(held) - 1)] == [0, 1]


def test_truths_of_old_runs_can_be_repeated() -> None:
    """The pixels that every reported figure was measured against."""
    held = list_images(DataSettings(photographs=EVERYTHING, image_size=32))
    digest = sha256(held.decode(range(len(held))).numpy().tobytes()).hexdigest()
    assert digest == "3c97d4e7563af165dd89008a8c0d044d15bbfd6920e96c93296312f8268f0470"


def test_the_default_clients_hold_no_training_photograph() -> None:
    assert not set(DataSettings().photographs) & set(TRAINING_PHOTOGRAPHS)
    assert set(TRAINING_PHOTOGRAPHS) <= set(PHOTOGRAPHS)
    assert len(list_images(DataSettings(photographs=EVERYTHING))) > 200


def test_an_unknown_photograph_is_named() -> None:
    with pytest.raises(SettingsError, match=r"data\.photographs = 'astronot'.*did you mean 'astronaut'"):
        list_images(DataSettings(photographs=("astronot",)))


def test_a_limit_beyond_what_there_is_takes_everything() -> None:
    held = list_images(DataSettings(limit=1000))
    assert len(held) == held.found == 88
    assert len(list_images(DataSettings(limit=3))) == 3
    assert list_images(DataSettings(limit=3)).found == 88


def test_a_single_tile_is_as_much_of_the_photograph_as_a_square_holds() -> None:
    names = ("astronaut", "chelsea", "flower")
    held = list_images(DataSettings(photographs=names, tiles_per_side=1, image_size=32))
    assert held.photographs == names
    tiles = list_images(DataSettings(photographs=("astronaut",), tiles_per_side=2, image_size=16)).decode(range(4))
    rows = torch.cat([torch.cat(list(row), dim=-1) for row in tiles.split(2)], dim=-2)
    torch.testing.assert_close(rows, held.decode([0])[0])


@pytest.mark.parametrize("size", [32, (32, 16), (16, 40)])
def test_a_single_tile_is_the_centre_of_the_photograph(size: int | tuple[int, int]) -> None:
    names = ("chelsea", "coffee", "flower")
    held = list_images(DataSettings(photographs=names, tiles_per_side=1, image_size=size))
    assert held.photographs == names
    shape = (size, size) if isinstance(size, int) else size
    centres = to_tensor([centre_crop(photograph(name), shape) for name in names])
    assert torch.equal(held.decode(range(3)), centres)
