import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from fl_sim.config import DataSettings, SettingsError
from fl_sim.images import folder as folder_module
from fl_sim.images.folder import SUFFIXES, list_folder
from fl_sim.images.image_set import ImageSet


def listed(path: Path, **settings) -> ImageSet:
    return list_folder(DataSettings(name="folder", path=path, **settings))


def put(path: Path, shade: int = 50) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (shade, 0, 0)).save(path)


def test_a_folder_is_read_recursively_in_order_with_its_folders_as_classes(folder: Path) -> None:
    held = listed(folder)
    assert held.photographs[:2] == ("dark/0.png", "dark/1.png")
    assert held.labels == ("dark",) * 3 + ("light",) * 3
    assert held.folders == ("dark", "light")
    images = held.decode([5, 0])
    assert images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(images[0, :, 8, 8], torch.tensor([240, 2, 0]) / 127.5 - 1)
    assert len(listed(folder, limit=4)) == 4
    assert len(listed(folder, limit=7)) == 6


def test_only_what_is_asked_for_is_decoded_and_that_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    read = folder_module.read_rgb
    monkeypatch.setattr(folder_module, "read_rgb", lambda path, name: decoded.append(path.name) or read(path, name))
    held = listed(folder)
    held.decode([1, 1, 2])
    held.decode([2])
    assert decoded == ["1.png", "2.png"]


def test_every_kind_is_read_in_small_and_capital_letters(tmp_path: Path) -> None:
    for suffix in sorted(SUFFIXES):
        content = Image.new("RGB", (12, 12))
        content.save(tmp_path / f"a{suffix}", format=None if suffix not in (".jpe", ".jfif") else "JPEG")
        content.save(tmp_path / f"B{suffix.upper()}", format=Image.registered_extensions()[suffix])
    held = listed(tmp_path)
    assert len(held) == 2 * len(SUFFIXES)
    assert not held.skipped
    held.identify_all()
    assert not held.broken
    assert held.decode(range(len(held))).shape == (2 * len(SUFFIXES), 3, 16, 16)


def test_names_may_be_anything(tmp_path: Path) -> None:
    names = ["a b.png", "grün.png", "new\nline.png", "[bold].png", os.fsdecode(b"byte\xff.png"), "two.dots.png"]
    for name in names:
        put(tmp_path / "c" / name)
    assert sorted(listed(tmp_path).photographs) == sorted(f"c/{name}" for name in names)


def test_hidden_files_are_no_images_and_hidden_folders_no_classes(folder: Path) -> None:
    for name in ("dark/._0.png", ".DS_Store", ".ipynb_checkpoints/0.png", "__MACOSX/0.png"):
        put(folder / "x.png")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / "x.png").rename(folder / name)
    held = listed(folder)
    assert held.skipped == Counter(hidden=4)
    assert held.folders == ("dark", "light")


def test_what_is_skipped_is_counted_by_kind(folder: Path) -> None:
    for name in ("a.heic", "b.HEIC", "notes.txt", "README", "odd.not a suffix"):
        (folder / name).touch()
    os.mkfifo(folder / "pipe.png")
    held = listed(folder)
    assert held.skipped == {".heic": 2, ".txt": 1, "of no known kind": 2, "special file": 1}


def test_links_are_followed_except_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "photo.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "one").symlink_to(tmp_path / "elsewhere")
    (root / "two").symlink_to(tmp_path / "elsewhere")
    (root / "file.png").symlink_to(tmp_path / "elsewhere" / "photo.png")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "itself").symlink_to(root / "itself")
    held = listed(root)
    assert held.photographs == ("file.png", "one/photo.png", "two/photo.png")
    assert held.labels == (".", "one", "two")
    assert held.skipped == {"broken link": 2, "link to a folder above": 2}


def test_a_folder_of_nothing_that_is_read_says_what_it_skipped(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no images in this folder; allowed: \.bmp, "):
        listed(tmp_path)
    (tmp_path / "scan.dcm").touch()
    (tmp_path / ".DS_Store").touch()
    with pytest.raises(SettingsError, match=r"no images in this folder; skipped: 1 \.dcm, 1 hidden; allowed: "):
        listed(tmp_path)


def test_a_path_that_is_no_folder_is_named(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"data\.path = '.*nowhere': no such folder"):
        listed(folder / "nowhere")
    with pytest.raises(SettingsError, match=r"data\.path = '.*0\.png': a file; allowed: a folder"):
        listed(folder / "dark" / "0.png")


def test_a_folder_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def denied(path):
        if Path(path).name == "light":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(SettingsError, match=r"light: cannot be read: Permission denied"):
        listed(folder)


def test_every_listed_file_is_looked_at_before_any_is_decoded(folder: Path) -> None:
    (folder / "light" / "2.png").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"light/2\.png: not a readable image: the file is empty"):
        listed(folder, strict=True).identify_all()
    listed(folder, limit=5, strict=True).identify_all()
    held = listed(folder)
    held.identify_all()
    assert held.broken.keys() == {5}


def test_broken_content_is_passed_over_but_not_a_file_that_is_out_of_reach(folder: Path) -> None:
    whole = (folder / "light" / "0.png").read_bytes()
    (folder / "light" / "0.png").write_bytes(whole[:-30])
    held = listed(folder)
    assert list(filter(held.is_sound, range(6))) == [0, 1, 2, 4, 5]
    assert "light/0.png: not a readable image: " in held.broken[3]
    (folder / "light" / "1.png").unlink()
    held = listed(folder)
    (folder / "light" / "2.png").unlink()
    with pytest.raises(SettingsError, match=r"light/2\.png: not a readable image: No such file"):
        held.is_sound(4)


def test_a_gif_shows_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("P", (20, 20), index) for index in (0, 1)]
    for frame in frames:
        frame.putpalette([250, 0, 0, 0, 0, 250])
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    red = listed(tmp_path).decode([0])[0, :, 8, 8]
    torch.testing.assert_close(red, torch.tensor([250, 0, 0]) / 127.5 - 1)


def test_images_are_cut_to_the_shape_of_the_settings(tmp_path: Path) -> None:
    """Three stripes beside one another: the middle is what a tall crop of a wide picture keeps."""
    picture = Image.new("RGB", (60, 20))
    for index, colour in enumerate(("red", "lime", "blue")):
        picture.paste(colour, (20 * index, 0, 20 * index + 20, 20))
    picture.save(tmp_path / "stripes.png")
    tall = listed(tmp_path, image_size=(20, 12)).decode([0])
    assert tall.shape == (1, 3, 20, 12)
    assert (tall[0, 1] == 1).all()
    wide = listed(tmp_path, image_size=(12, 36)).decode([0])[0]
    assert wide.shape == (3, 12, 36)
    assert wide[:, 6, [2, 18, 33]].argmax(dim=0).tolist() == [0, 1, 2]


def test_grey_is_pillows_and_what_is_grey_stays_as_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (200, 100, 50)).save(tmp_path / "a.png")
    Image.new("L", (20, 20), 77).save(tmp_path / "b.png")
    grey = listed(tmp_path).decode([0, 1], channels=1)
    assert grey.shape == (2, 1, 16, 16)
    luminance = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    torch.testing.assert_close(grey[:, 0, 8, 8], torch.tensor([luminance, 77]) / 127.5 - 1)


def test_classes_are_numbered_in_order_whatever_the_limit(folder: Path) -> None:
    held = listed(folder, limit=4)
    assert held.classes == ("dark", "light")
    assert [held.class_of(index) for index in range(4)] == [0, 0, 0, 1]
    assert listed(folder, limit=1).classes == ("dark", "light")
