"""The clients' private images: bundled photographs, a folder, or a Hugging Face dataset, and who holds which.

Everything here is a pure function of the settings and the private seed, so that the evaluator can repeat it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fl_sim.config import DataSettings, SettingsError
from fl_sim.draws import derive_seed

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
"""Photographs that installed packages ship: name -> (package, file in it)."""

TRAINING_PHOTOGRAPHS = ("china", "flower", "motorcycle")
"""What the bundled checkpoint is trained on; the default clients hold none of them."""

HELD_OUT_PHOTOGRAPHS = ("hopper", "retina", "ihc", "hubble")
"""Neither in the bundled checkpoint nor held by the default clients."""

TILES_PER_SIDE = 4
"""A bundled photograph's shorter side holds this many crops: few enough to recognise what they show."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True)
class PrivateImages:
    """Images float32 [M,3,S,S] in [-1, 1]; for each, the photograph it was cut from and its class."""

    images: Tensor
    photographs: tuple[str, ...]
    labels: tuple[str, ...]


@cache
def load_images(settings: DataSettings) -> PrivateImages:
    """All images of the federation, in a fixed order; loaded once per process.

    Raises:
        SettingsError: if a name is unknown, or a folder, dataset or image cannot be read.
    """
    if settings.name == "bundled":
        return _load_bundled(settings)
    crops = _load_folder(settings) if settings.name == "folder" else _load_hub(settings)
    names, labels, images = zip(*crops, strict=True)
    return PrivateImages(to_tensor(images), names, labels)


@cache
def partition(settings: DataSettings, clients: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """For each of ``clients``, the indices into ``load_images(settings)`` that it holds; ``seed`` is the private one.

    ``iid`` deals the shuffled images out evenly, ``dirichlet`` gives every client its own mixture of the classes,
    ``photo`` gives client i every crop of photograph i modulo their number.

    Raises:
        SettingsError: if a client would be left without an image.
    """
    held = load_images(settings)
    if settings.partition == "photo":
        photographs = list(dict.fromkeys(held.photographs))
        crops = {name: tuple(i for i, owner in enumerate(held.photographs) if owner == name) for name in photographs}
        return tuple(crops[photographs[client % len(photographs)]] for client in range(clients))
    if clients > len(held.labels):
        raise SettingsError(
            f"federation.clients = {clients}: there are {len(held.labels)} images for data.partition = "
            f"{settings.partition!r}; allowed: at most as many clients as images"
        )
    return _deal(settings, clients, derive_seed(seed, "partition") % 2**32, held.labels)


def _deal(settings: DataSettings, clients: int, seed: int, labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Partition with flwr-datasets, imported here because it takes seconds that the other partition spares."""
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner

    dataset = Dataset.from_dict({"index": list(range(len(labels))), "label": list(labels)}).shuffle(seed=seed)
    partitioner: Partitioner = IidPartitioner(clients)
    if settings.partition == "dirichlet":
        partitioner = DirichletPartitioner(
            clients, partition_by="label", alpha=settings.dirichlet_alpha, min_partition_size=1, seed=seed
        )
    partitioner.dataset = dataset
    try:
        return tuple(tuple(partitioner.load_partition(client)["index"]) for client in range(clients))
    except ValueError as error:
        raise SettingsError(
            f"data.dirichlet_alpha = {settings.dirichlet_alpha}: no split of {len(labels)} images leaves each of "
            f"{clients} clients one; raise it or lower federation.clients"
        ) from error


def _load_bundled(settings: DataSettings) -> PrivateImages:
    unknown = [name for name in settings.photographs if name not in PHOTOGRAPHS]
    if unknown:
        raise SettingsError(f"data.photographs = {unknown[0]!r}: unknown; allowed: {', '.join(PHOTOGRAPHS)}")
    tiles = {name: _tiles(photograph(name), settings.image_size) for name in settings.photographs}
    owners = tuple(name for name, crops in tiles.items() for _ in crops)[: settings.limit]
    images = [crop for crops in tiles.values() for crop in crops][: settings.limit]
    return PrivateImages(to_tensor(images), owners, owners)


def photograph(name: str) -> Image.Image:
    """A bundled photograph at its full size, RGB."""
    package, file = PHOTOGRAPHS[name]
    # Found without importing the package: scikit-learn alone takes over a second.
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return _open(Path(spec.submodule_search_locations[0]) / file)


def _tiles(picture: Image.Image, size: int) -> list[Image.Image]:
    """The picture, its shorter side reduced to TILES_PER_SIDE crops, cut into squares row by row."""
    scale = TILES_PER_SIDE * size / min(picture.size)
    width, height = round(picture.width * scale), round(picture.height * scale)
    reduced = picture.resize((width, height), Image.Resampling.LANCZOS)
    corners = [(x, y) for y in range(0, height - size + 1, size) for x in range(0, width - size + 1, size)]
    return [reduced.crop((x, y, x + size, y + size)) for x, y in corners]


def _square(picture: Image.Image, size: int) -> Image.Image:
    """The largest centred square of the picture, reduced to ``size``."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def _load_folder(settings: DataSettings) -> list[tuple[str, str, Image.Image]]:
    """(relative path, folder it lies in, crop) of every image under ``data.path``, sorted by path."""
    root = settings.path
    if root is None or not root.is_dir():
        raise SettingsError(f"data.path = {str(root)!r}: no such folder")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise SettingsError(
            f"data.path = {str(root)!r}: no images in this folder; allowed: {', '.join(sorted(SUFFIXES))}"
        )
    return [
        (
            path.relative_to(root).as_posix(),
            path.parent.relative_to(root).as_posix(),
            _square(_open(path), settings.image_size),
        )
        for path in files[: settings.limit]
    ]


def _load_hub(settings: DataSettings) -> list[tuple[str, str, Image.Image]]:
    """(row, class, crop) of a Hugging Face dataset: a hub id, or a local folder in one of its formats."""
    import datasets

    try:
        rows = datasets.load_dataset(settings.name, split=settings.split)
    except Exception as error:  # the library raises anything from ValueError to its own and the network's errors
        reason = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"data.name = {settings.name!r}: not 'bundled' or 'folder', and no dataset of that name could "
            f"be loaded: {reason}"
        ) from error
    image = next((name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)), None)
    if image is None:
        raise SettingsError(f"data.name = {settings.name!r}: no image column among {', '.join(rows.features)}")
    label = next((name for name, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)), None)
    chosen = rows.select(range(min(settings.limit or len(rows), len(rows))))
    return [
        (
            f"{settings.split}/{index}",
            str(row[label]) if label else "",
            _square(row[image].convert("RGB"), settings.image_size),
        )
        for index, row in enumerate(chosen)
    ]


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SettingsError(f"{path}: not a readable image: {' '.join(str(error).split())}") from error


def to_tensor(pictures: Sequence[Any]) -> Tensor:
    """RGB pictures of one size as float32 [M,3,H,W] in [-1, 1]."""
    pixels = np.stack([np.asarray(picture, dtype=np.uint8) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
