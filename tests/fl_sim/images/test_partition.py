import os
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

from fl_sim.config import DataSettings, SettingsError
from fl_sim.images.partition import held_out_images, partition
from fl_sim.images.sources import list_images


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_every_image_goes_to_one_client_and_the_split_follows_the_private_seed(kind: str) -> None:
    settings = DataSettings(partition=kind)
    parts = partition(settings, 4, 7)
    assert sorted(index for part in parts for index in part) == list(range(88))
    assert all(parts)
    partition.cache_clear()
    assert partition(settings, 4, 7) == parts
    assert partition(settings, 4, 8) != parts


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "photo"])
def test_an_image_is_held_out_or_held_by_one_client_and_the_private_seed_says_which(kind: str) -> None:
    settings = DataSettings(partition=kind, held_out=0.25)
    held_out = held_out_images(settings, 7)
    assert len(held_out) == 22
    assert sorted([*held_out, *(index for part in partition(settings, 4, 7) for index in part)]) == list(range(88))
    assert held_out_images(settings, 8) != held_out
    assert held_out_images(DataSettings(partition=kind), 7) == frozenset()


def test_a_share_of_no_image_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"data\.held_out = 1e-09: that is none of 88 images; allowed: 0, or more"):
        held_out_images(DataSettings(held_out=1e-9), 7)


def test_a_client_whose_images_are_all_held_out_is_one_line(folder: Path) -> None:
    settings = DataSettings(name="folder", path=folder, partition="folder", held_out=0.9)
    with pytest.raises(SettingsError, match=r"data\.held_out: all .* images of client . are held out; lower it"):
        partition(settings, 2, 0)


def test_dirichlet_skews_the_photographs_and_iid_does_not() -> None:
    owners = list_images(DataSettings()).photographs

    def largest_share(kind: str, alpha: float = 0.1) -> float:
        parts = partition(DataSettings(partition=kind, dirichlet_alpha=alpha), 4, 1)
        shares = [max(np.unique([owners[i] for i in part], return_counts=True)[1]) / len(part) for part in parts]
        return float(np.mean(shares))

    assert largest_share("dirichlet") > largest_share("iid") + 0.2


def test_photo_gives_each_client_one_photograph_in_turn() -> None:
    owners = list_images(DataSettings()).photographs
    parts = partition(DataSettings(partition="photo"), 5, 7)
    photographs = [{owners[index] for index in part} for part in parts]
    assert photographs == [{"astronaut"}, {"chelsea"}, {"coffee"}, {"rocket"}, {"astronaut"}]


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_more_clients_than_images_is_refused(kind: str) -> None:
    with pytest.raises(SettingsError, match=r"federation\.clients = 3: there are 2 images"):
        partition(DataSettings(partition=kind, limit=2), 3, 0)


def test_a_photo_in_a_folder_is_a_file(folder: Path) -> None:
    assert partition(DataSettings(name="folder", path=folder, partition="photo"), 2, 0) == ((0,), (1,))


def test_a_folder_goes_to_one_client(folder: Path) -> None:
    deeper = folder / "dark" / "deeper"
    deeper.mkdir()
    Image.new("RGB", (20, 20)).save(deeper / "x.png")
    settings = DataSettings(name="folder", path=folder, partition="folder")
    assert partition(settings, 2, 0) == ((0, 1, 2, 3), (4, 5, 6))
    assert partition(settings, 1, 9) == ((0, 1, 2, 3),)
    with pytest.raises(SettingsError, match=r"federation\.clients = 3: data\.path has 2 sub-folders.*at most as many"):
        partition(settings, 3, 0)


def test_images_outside_the_sub_folders_belong_to_nobody_and_are_refused(folder: Path) -> None:
    Image.new("RGB", (20, 20)).save(folder / "stray.png")
    with pytest.raises(SettingsError, match=r"not in a sub-folder of data\.path: stray\.png; put"):
        partition(DataSettings(name="folder", path=folder, partition="folder"), 2, 0)


def test_a_client_whose_folder_is_empty_or_cut_off_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"no images in sub-folder light among the first 2 \(data\.limit\)"):
        partition(DataSettings(name="folder", path=folder, partition="folder", limit=2), 2, 0)
    (folder / "empty").mkdir()
    settings = DataSettings(name="folder", path=folder, partition="folder")
    with pytest.raises(SettingsError, match=r"no images in sub-folder empty$"):
        partition(settings, 3, 0)


def test_names_that_no_text_can_hold_are_classes_too(folder: Path) -> None:
    odd = folder / os.fsdecode(b"\xff")
    odd.mkdir()
    Image.new("RGB", (20, 20)).save(odd / "x.png")
    for kind in ("iid", "dirichlet"):
        assert len(partition(DataSettings(name="folder", path=folder, partition=kind), 2, 0)) == 2


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"photographs": ("coffee",)}, "one class, 'coffee'; name several in data.photographs$"),
        ({"limit": 10}, "one class, 'astronaut'; name several in data.photographs, or raise data.limit = 10$"),
    ],
)
def test_dirichlet_needs_several_classes(change: dict, remedy: str) -> None:
    with pytest.raises(SettingsError, match=rf"data\.partition = 'dirichlet': all images are of {remedy}"):
        partition(DataSettings(partition="dirichlet", **change), 2, 0)


def test_dirichlet_needs_several_folders(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"one class, '\.'; put the images of each class into a sub-folder"):
        partition(DataSettings(name="folder", path=folder / "dark", partition="dirichlet"), 2, 0)
    with pytest.raises(SettingsError, match=r"one class, 'dark'; .*or raise data\.limit = 3"):
        partition(DataSettings(name="folder", path=folder, partition="dirichlet", limit=3), 2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(partition(DataSettings(name="folder", path=folder, partition="dirichlet", limit=4), 2, 0)) == 2


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({}, "no labels to split by; choose another data.partition"),
        ({"caption": (Value("string"), "abcd")}, "no labels to split by; set data.label_column to one of caption"),
        (
            {"fine": (ClassLabel(num_classes=4), [0, 1, 2, 3]), "coarse": (ClassLabel(num_classes=2), [0, 0, 1, 1])},
            "no labels to split by; set data.label_column to one of fine, coarse",
        ),
        ({"label": (Value("int64"), [3] * 4)}, "one class, '3'; set data.label_column to one of label"),
    ],
)
def test_dirichlet_needs_the_labels_of_a_dataset(folder: Path, tmp_path: Path, columns: dict, complaint: str) -> None:
    features = {"image": datasets.Image()} | {name: feature for name, (feature, _) in columns.items()}
    values = {"image": [str(folder / "dark" / "0.png")] * 4} | {name: list(v) for name, (_, v) in columns.items()}
    Dataset.from_dict(values, features=Features(features)).save_to_disk(tmp_path / "saved")
    with pytest.raises(SettingsError, match=rf"data\.partition = 'dirichlet': .*{complaint}"):
        partition(DataSettings(name=str(tmp_path / "saved"), partition="dirichlet"), 2, 0)
