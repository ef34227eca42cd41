from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fl_sim.config import BUNDLED_SETS, DataSettings, SettingsError
from fl_sim.images import small_pictures
from fl_sim.images.partition import partition
from fl_sim.images.sources import list_images


def test_the_settings_know_their_names() -> None:
    assert set(BUNDLED_SETS) == {"bundled", *small_pictures.SMALL_PICTURES}


def test_digits_are_scikit_learns() -> None:
    expected = load_digits()
    pictures, numbers = small_pictures._read("digits")
    np.testing.assert_array_equal(pictures, np.round(expected.images * 255 / 16))
    np.testing.assert_array_equal(numbers, expected.target)


def test_digits_have_ten_classes_and_any_size() -> None:
    held = list_images(DataSettings(name="digits", image_size=28))
    assert len(held) == held.found == 1797
    assert held.classes == tuple("0123456789")
    assert [held.class_of(index) for index in range(10)] == list(range(10))
    grey, rgb = held.decode([0, 7], channels=1), held.decode([0, 7])
    assert grey.shape == (2, 1, 28, 28)
    assert torch.equal(rgb, grey.expand(-1, 3, -1, -1))
    assert grey[:, 0, :, 0].mean() < -0.9, "paper is black"
    assert grey.flatten(1).max(dim=1).values.min() > 0.8, "ink is white"


def test_faces_are_a_hundred_of_each_class() -> None:
    held = list_images(DataSettings(name="faces", image_size=(25, 25)))
    assert [held.labels.count(name) for name in held.classes] == [100, 100]
    assert held.labels[0] == "face"
    source = np.load(small_pictures.package_file("skimage", "data/lfw_subset.npy"))
    images = (held.decode([3, 150], channels=1) + 1) / 2
    torch.testing.assert_close(images[:, 0].double(), torch.tensor(source[[3, 150]]).double(), atol=0.51 / 255, rtol=0)


@pytest.mark.parametrize("name", ["digits", "faces"])
def test_dirichlet_skews_their_classes(name: str) -> None:
    settings = DataSettings(name=name, partition="dirichlet", dirichlet_alpha=0.1)
    held, parts = list_images(settings), partition(settings, 4, 1)
    assert sorted(index for part in parts for index in part) == list(range(len(held)))
    shares = [max(np.unique([held.labels[i] for i in part], return_counts=True)[1]) / len(part) for part in parts]
    assert np.mean(shares) > {"digits": 0.25, "faces": 0.7}[name]


def test_a_limit_takes_the_first(tmp_path: Path) -> None:
    held = list_images(DataSettings(name="faces", limit=3))
    assert (len(held), held.found) == (3, 200)
    with pytest.raises(
        SettingsError, match=r"one class, 'face'; choose another data.partition, or raise data.limit = 3"
    ):
        partition(DataSettings(name="faces", limit=3, partition="dirichlet"), 2, 0)


def test_a_package_that_ships_no_such_file_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(small_pictures, "package_file", lambda _, file: tmp_path / file)
    small_pictures._read.cache_clear()
    with pytest.raises(
        SettingsError, match=r"data\.name = 'faces': the installed skimage has no .*nothing is downloaded"
    ):
        small_pictures.list_small_pictures(DataSettings(name="faces"))
