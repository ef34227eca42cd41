"""Photographs that installed packages ship, each cut into tiles."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from fl_sim.config import DataSettings, SettingsError
from fl_sim.errors import nearest
from fl_sim.images.image_set import ImageSet
from fl_sim.images.pixels import read_rgb

PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
}
"""Name -> (package, file in it)."""

TRAINING_PHOTOGRAPHS = ("china", "flower", "motorcycle")
"""What the bundled checkpoint is trained on; the default clients hold none of them."""

HELD_OUT_PHOTOGRAPHS = ("hopper", "retina", "ihc", "hubble")
"""Neither in the bundled checkpoint nor held by the default clients."""


def list_bundled(settings: DataSettings) -> ImageSet:
    """The tiles of ``data.photographs``, row by row; a tile's label is its photograph.

    Raises:
        SettingsError: if a photograph is unknown.
    """
    for name in settings.photographs:
        if name not in PHOTOGRAPHS:
            allowed = ", ".join(PHOTOGRAPHS)
            raise SettingsError(f"data.photographs = {name!r}: unknown; allowed: {allowed}{nearest(name, PHOTOGRAPHS)}")
    size, side = settings.image_size, settings.tiles_per_side * settings.image_size
    tiles = [
        (name, corner)
        for name in dict.fromkeys(settings.photographs)
        for corner in _corners(_reduced_size(_size(name), side), size)
    ]
    used = tiles[: settings.limit]

    def crop(index: int) -> Image.Image:
        name, (x, y) = used[index]
        return _reduced(name, side).crop((x, y, x + size, y + size))

    owners = tuple(name for name, _ in used)
    return ImageSet(size, owners, owners, "name several in data.photographs", crop, found=len(tiles))


def photograph(name: str) -> Image.Image:
    """A bundled photograph at its full size, RGB."""
    return read_rgb(_path(name), str(_path(name)))


def _path(name: str) -> Path:
    package, file = PHOTOGRAPHS[name]
    # Found without importing the package: scikit-learn alone takes over a second.
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / file


def _size(name: str) -> tuple[int, int]:
    with Image.open(_path(name)) as picture:
        return picture.size


def _reduced_size(full: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height once the shorter side is ``side`` pixels long."""
    scale = side / min(full)
    return round(full[0] * scale), round(full[1] * scale)


def _corners(reduced: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Upper left corners (x, y) of the tiles, row by row."""
    width, height = reduced
    return [(x, y) for y in range(0, height - size + 1, size) for x in range(0, width - size + 1, size)]


@lru_cache(maxsize=4)
def _reduced(name: str, side: int) -> Image.Image:
    full = photograph(name)
    return full.resize(_reduced_size(full.size, side), Image.Resampling.LANCZOS)
