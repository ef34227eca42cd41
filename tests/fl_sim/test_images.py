from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fl_sim.config import DataSettings, SettingsError
from fl_sim.images import PHOTOGRAPHS, TRAINING_PHOTOGRAPHS, load_images, partition


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, shade in (("dark", 10), ("light", 240)):
        (tmp_path / label).mkdir()
        for number in range(3):
            Image.new("RGB", (40, 30), (shade, number, 0)).save(tmp_path / label / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("size", [16, 32, 64])
def test_bundled_crops_are_detailed_photographs_in_range(size: int) -> None:
    held = load_images(DataSettings(image_size=size))
    assert held.images.shape == (88, 3, size, size)
    assert held.images.dtype == torch.float32
    assert held.images.min() >= -1
    assert held.images.max() <= 1
    assert (held.images.std(dim=(1, 2, 3)) > 0.02).float().mean() > 0.9
    assert [held.photographs.count(name) for name in DataSettings().photographs] == [16, 24, 24, 24]


def test_the_default_clients_hold_no_training_photograph() -> None:
    assert not set(DataSettings().photographs) & set(TRAINING_PHOTOGRAPHS)
    assert set(TRAINING_PHOTOGRAPHS) <= set(PHOTOGRAPHS)
    assert len(load_images(DataSettings(photographs=tuple(PHOTOGRAPHS))).images) > 200


def test_an_unknown_photograph_is_named() -> None:
    with pytest.raises(SettingsError, match=r"data\.photographs = 'mona-lisa'.*astronaut"):
        load_images(DataSettings(photographs=("mona-lisa",)))


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_a_partition_gives_every_image_to_one_client_and_follows_the_private_seed(kind: str) -> None:
    settings = DataSettings(partition=kind)
    parts = partition(settings, 4, 7)
    assert sorted(index for part in parts for index in part) == list(range(88))
    assert all(parts)
    partition.cache_clear()
    assert partition(settings, 4, 7) == parts
    assert partition(settings, 4, 8) != parts


def test_dirichlet_skews_the_photographs_and_iid_does_not() -> None:
    owners = load_images(DataSettings()).photographs

    def largest_share(kind: str, alpha: float = 0.1) -> float:
        parts = partition(DataSettings(partition=kind, dirichlet_alpha=alpha), 4, 1)
        shares = [max(np.unique([owners[i] for i in part], return_counts=True)[1]) / len(part) for part in parts]
        return float(np.mean(shares))

    assert largest_share("dirichlet") > largest_share("iid") + 0.2


def test_photo_gives_each_client_one_photograph_in_turn() -> None:
    owners = load_images(DataSettings()).photographs
    parts = partition(DataSettings(partition="photo"), 5, 7)
    photographs = [{owners[index] for index in part} for part in parts]
    assert photographs == [{"astronaut"}, {"chelsea"}, {"coffee"}, {"rocket"}, {"astronaut"}]


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_more_clients_than_images_is_refused(kind: str) -> None:
    with pytest.raises(SettingsError, match=r"federation\.clients = 3: there are 2 images"):
        partition(DataSettings(partition=kind, limit=2), 3, 0)


def test_a_folder_is_read_recursively_in_order_with_its_folders_as_classes(folder: Path) -> None:
    held = load_images(DataSettings(name="folder", path=folder))
    assert held.photographs[:2] == ("dark/0.png", "dark/1.png")
    assert held.labels == ("dark",) * 3 + ("light",) * 3
    assert held.images.shape == (6, 3, 16, 16)
    expected = torch.tensor([240, 2, 0]) / 127.5 - 1
    torch.testing.assert_close(held.images[5, :, 8, 8], expected)
    assert len(load_images(DataSettings(name="folder", path=folder, limit=4)).images) == 4


def test_a_photo_in_a_folder_is_a_file(folder: Path) -> None:
    settings = DataSettings(name="folder", path=folder, partition="photo")
    assert partition(settings, 2, 0) == ((0,), (1,))


def test_a_broken_image_and_an_empty_or_missing_folder_are_named(folder: Path) -> None:
    whole = (folder / "dark" / "0.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SettingsError, match=r"broken\.png: not a readable image"):
        load_images(DataSettings(name="folder", path=folder))
    with pytest.raises(SettingsError, match="no such folder"):
        load_images(DataSettings(name="folder", path=folder / "nowhere"))
    (folder / "empty").mkdir()
    with pytest.raises(SettingsError, match="no images in this folder"):
        load_images(DataSettings(name="folder", path=folder / "empty"))


def test_a_local_folder_in_the_hubs_format(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    held = load_images(DataSettings(name=str(folder), image_size=32))
    assert held.images.shape == (6, 3, 32, 32)
    assert held.labels == ("0",) * 3 + ("1",) * 3
    assert held.photographs[0] == "train/0"


def test_a_dataset_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data\.name = '.*nowhere'"):
        load_images(DataSettings(name=str(tmp_path / "nowhere")))
