"""Sets of small grey pictures that installed packages ship: handwritten digits and faces. Nothing is downloaded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fl_sim.config import DataSettings, SettingsError
from fl_sim.errors import message
from fl_sim.images.image_set import ImageSet
from fl_sim.images.package_file import package_file
from fl_sim.images.pixels import centre_crop

Pictures = tuple[NDArray[np.uint8], NDArray[np.intp]]
"""Grey pictures [N,H,W], 0 is black, and the number of each one's class [N]."""


@dataclass(frozen=True)
class PictureSet:
    """A set that a package ships.

    Attributes:
        package, file: where it is.
        read: from that file to the pictures.
        classes: the names of the classes.
        description: one line for ``fl-sim list``.
    """

    package: str
    file: str
    read: Callable[[Path], Pictures]
    classes: tuple[str, ...]
    description: str


def _read_digits(path: Path) -> Pictures:
    """1,797 rows of 64 levels from 0 (paper) to 16 (ink) and the digit; ink is white here, as in MNIST."""
    rows = np.loadtxt(path, delimiter=",", dtype=np.intp)
    return _to_bytes(rows[:, :-1].reshape(-1, 8, 8) / 16), rows[:, -1]


def _read_faces(path: Path) -> Pictures:
    """200 pictures in [0, 1], 25x25: first the 100 faces."""
    pictures = np.load(path, allow_pickle=False)
    return _to_bytes(pictures), np.arange(len(pictures)) // 100


def _to_bytes(levels: NDArray[np.floating]) -> NDArray[np.uint8]:
    return (255 * levels).round().astype(np.uint8)


SMALL_PICTURES = {
    "digits": PictureSet(
        "sklearn",
        "datasets/data/digits.csv.gz",
        _read_digits,
        tuple(map(str, range(10))),
        "1,797 handwritten digits, 8x8, grey, ten classes (scikit-learn)",
    ),
    "faces": PictureSet(
        "skimage",
        "data/lfw_subset.npy",
        _read_faces,
        ("face", "other"),
        "100 faces and 100 other pictures, 25x25, grey, two classes (scikit-image, from Labeled Faces in the Wild)",
    ),
}
"""By their name in the settings."""


def list_small_pictures(settings: DataSettings) -> ImageSet:
    """The pictures of the set ``data.name``, enlarged.

    Raises:
        SettingsError: if the installed package does not ship them.
    """
    chosen = SMALL_PICTURES[settings.name]
    pictures, numbers = _read(settings.name)
    used = len(pictures[: settings.limit])
    return ImageSet(
        settings.height_width,
        photographs=tuple(f"{settings.name}/{index}" for index in range(used)),
        labels=tuple(chosen.classes[number] for number in numbers[:used]),
        classes=chosen.classes,
        remedy="choose another data.partition",
        crop=lambda index: centre_crop(Image.fromarray(pictures[index]), settings.height_width),
        found=len(pictures),
    )


@cache
def _read(name: str) -> Pictures:
    chosen = SMALL_PICTURES[name]
    path = package_file(chosen.package, chosen.file)
    try:
        return chosen.read(path)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"data.name = {name!r}: the installed {chosen.package} has no {chosen.file} that can be read "
            f"({message(error)}), and nothing is downloaded; allowed: another data.name"
        ) from error
