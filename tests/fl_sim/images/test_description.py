from pathlib import Path

import pytest
from PIL import Image

from fl_sim.config import SettingsError
from fl_sim.images.description import describe_images
from fl_sim.images.sources import list_images
from tests.fl_sim.federations import tiny_settings


def described(*overrides: str) -> list[str]:
    return describe_images(tiny_settings(*overrides))


def test_the_default_federation() -> None:
    assert described("federation.clients=4") == ["data: 88 images used", "clients hold 16, 24, 24, 24 images"]


def test_what_a_limit_leaves_and_what_a_folder_skipped(folder: Path) -> None:
    for name in ("a.heic", "b.heic", ".hidden.png"):
        (folder / name).touch()
    given = ("data.name=folder", f"data.path={folder}", "data.partition=iid", "federation.clients=2")
    assert described(*given) == ["data: 6 images used; skipped: 2 .heic, 1 hidden", "clients hold 3, 3 images"]
    assert described(*given, "data.limit=4") == [
        "data: 4 of 6 images used (data.limit); skipped: 2 .heic, 1 hidden",
        "clients hold 2, 2 images",
    ]
    assert described(*given, "data.limit=9")[0].startswith("data: 6 images used; ")


def test_broken_images_are_counted_and_the_first_are_named(folder: Path) -> None:
    given = ("data.name=folder", f"data.path={folder}", "data.partition=iid", "federation.clients=2")
    for name in ("dark/0.png", "dark/2.png", "light/0.png", "light/1.png"):
        (folder / name).write_bytes(b"")
    settings = tiny_settings(*given)
    assert "broken" not in describe_images(settings)[0], "nobody has looked yet"
    list_images(settings.data).identify_all()
    line = describe_images(settings)[0]
    assert line.startswith("data: 2 of 6 images used; skipped: 4 broken: ")
    assert "dark/0.png: not a readable image: the file is empty; " in line
    assert line.endswith("light/0.png: not a readable image: the file is empty and 1 more")


def test_what_nobody_holds_is_named(folder: Path) -> None:
    assert described("federation.clients=2") == [
        "data: 40 of 88 images used",
        "clients hold 16, 24 images; held by nobody: coffee, rocket",
    ]
    (folder / "zoo").mkdir()
    given = ("data.name=folder", f"data.path={folder}", "data.partition=folder", "federation.clients=1")
    assert described(*given) == ["data: 3 of 6 images used", "the client holds 3 images; held by nobody: light, zoo"]


def test_many_clients_and_many_names_are_summed_up(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"h{number:02}").mkdir()
        for image in range(1 + number):
            Image.new("L", (1, 1)).save(tmp_path / f"h{number:02}" / f"{image}.pgm")
    given = ("data.name=folder", f"data.path={tmp_path}", "data.partition=folder", "federation.clients=29")
    assert described(*given)[1] == (
        "29 clients hold 1 to 29 images, the median one 15; held by nobody: h29, h30, h31, h32, h33, h34, h35, h36 "
        "and 3 more"
    )
    assert described(*given, "data.partition=photo", "federation.clients=9")[1].startswith(
        "9 clients hold 1 image each; "
    )


def test_lines_stay_lines(tmp_path: Path) -> None:
    for name in ("a", "b\nc"):
        (tmp_path / name).mkdir()
        Image.new("L", (1, 1)).save(tmp_path / name / "x.pgm")
    given = ("data.name=folder", f"data.path={tmp_path}", "data.partition=folder", "federation.clients=1")
    assert described(*given)[1] == r"the client holds 1 image; held by nobody: b\nc"


def test_a_split_that_cannot_be_is_refused() -> None:
    with pytest.raises(SettingsError, match="one class"):
        described("data.partition=dirichlet", "data.photographs=['coffee']")
