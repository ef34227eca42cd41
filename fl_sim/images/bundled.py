"""Photographs that installed packages ship, each cut into tiles, or cropped to its centre."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from PIL import Image

from fl_sim.config import DataSettings, SettingsError
from fl_sim.errors import nearest
from fl_sim.images.image_set import ImageSet
from fl_sim.images.package_file import package_file
from fl_sim.images.pixels import centre_crop, read_rgb

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
    """The tiles of ``data.photographs``; a tile's label is its photograph.

    Raises:
        SettingsError: if a photograph is unknown.
    """
    for name in settings.photographs:
        if name not in PHOTOGRAPHS:
            allowed = ", ".join(PHOTOGRAPHS)
            raise SettingsError(f"data.photographs = {name!r}: unknown; allowed: {allowed}{nearest(name, PHOTOGRAPHS)}")
    names = tuple(dict.fromkeys(settings.photographs))
    tiles = [(name, cut) for name in names for cut in _tiles(name, settings)]
    used = tiles[: settings.limit]
    owners = tuple(name for name, _ in used)
    return ImageSet(
        settings.height_width,
        photographs=owners,
        labels=owners,
        classes=names,
        remedy="name several in data.photographs",
        crop=lambda index: used[index][1](),
        found=len(tiles),
    )


def photograph(name: str) -> Image.Image:
    """A bundled photograph at its full size, RGB."""
    return read_rgb(_path(name), str(_path(name)))


def _tiles(name: str, settings: DataSettings) -> list[Callable[[], Image.Image]]:
    """The tiles of a photograph, row by row; calling one cuts it. A single tile is the centre."""
    height, width = settings.height_width
    if settings.tiles_per_side == 1:
        return [lambda: centre_crop(photograph(name), (height, width))]
    grid = settings.tiles_per_side * height, settings.tiles_per_side * width
    corners = _corners(_reduced_size(_size(name), grid), (height, width))
    return [partial(_tile, name, grid, (x, y, x + width, y + height)) for x, y in corners]


def _tile(name: str, grid: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    return _reduced(name, grid).crop(box)


def _path(name: str) -> Path:
    return package_file(*PHOTOGRAPHS[name])


def _size(name: str) -> tuple[int, int]:
    with Image.open(_path(name)) as picture:
        return picture.size


def _reduced_size(full: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the smallest reduction into which ``grid``, (height, width), fits."""
    scale = max(grid[0] / full[1], grid[1] / full[0])
    return round(full[0] * scale), round(full[1] * scale)


def _corners(reduced: tuple[int, int], tile: tuple[int, int]) -> list[tuple[int, int]]:
    """Upper left corners (x, y) of the tiles of (height, width) ``tile``, row by row."""
    (width, height), (down, across) = reduced, tile
    return [(x, y) for y in range(0, height - down + 1, down) for x in range(0, width - across + 1, across)]


@lru_cache(maxsize=4)
def _reduced(name: str, grid: tuple[int, int]) -> Image.Image:
    full = photograph(name)
    return full.resize(_reduced_size(full.size, grid), Image.Resampling.LANCZOS)
