"""The public images that a prior is trained on, and what its file says of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from experiments.public_images import image_hashes
from fl_sim.config import BUNDLED_SETS, DataSettings, Section, Settings, SettingsError
from fl_sim.images.bundled import TRAINING_PHOTOGRAPHS, photograph
from fl_sim.images.classes import class_numbers
from fl_sim.images.image_set import ImageSet
from fl_sim.images.pixels import to_tensor
from fl_sim.images.sources import list_images
from fl_sim.settings_file import load_settings

PHOTOGRAPHS = "photographs"
HASHES = "sha256"
"""Keys of a checkpoint's metadata: the bundled photographs that it was trained on, and the hash of every image."""
_OF_CLIENTS = ("partition", "dirichlet_alpha", "held_out")
"""Settings of [data] that deal images out to clients."""


class PriorSource(Section):
    """Which images a prior is trained on, and how they are cut.

    ``data``: "bundled" (photographs that the default clients do not hold), "digits", "faces", a folder, or a Hugging
    Face dataset. ``settings``: more settings of [data], as ``key=value``. ``skip``: the first images are left out,
    which clients may then hold. ``crops``: the scales of bundled photographs, as how many images fit along the shorter
    side; the fewer fit, the more of a photograph an image shows.
    """

    data: str
    settings: tuple[str, ...] = ()
    skip: int = Field(0, ge=0)
    image_size: int = Field(16, ge=1, le=1024)
    grey: bool = False
    classes: bool = False
    crops: tuple[Annotated[int, Field(ge=1, le=64)], ...] = ()
    horizontal_flip: bool = False

    @property
    def channels(self) -> int:
        """Of every image."""
        return 1 if self.grey else 3


class PriorImages(NamedTuple):
    """Pictures float [C,H,W] in [-1, 1], at least as large as the images; each one's class; notes for the metadata.

    ``classes`` are the names; empty where the network is told none.
    """

    pictures: list[Tensor]
    labels: list[int]
    classes: tuple[str, ...]
    notes: dict[str, Any]

    def draw(self, count: int, size: int, flip: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random crops [count,C,size,size] of random pictures, half of them mirrored with ``flip``; labels [count]."""

        def number(below: int) -> int:
            return int(torch.randint(below, (), generator=generator))

        crops, labels = [], []
        for _ in range(count):
            chosen = number(len(self.pictures))
            picture = self.pictures[chosen]
            top, left = number(picture.shape[1] - size + 1), number(picture.shape[2] - size + 1)
            crop = picture[:, top : top + size, left : left + size]
            crops.append(crop.flip(-1) if flip and number(2) else crop)
            labels.append(self.labels[chosen])
        return torch.stack(crops), torch.tensor(labels)


def read_images(source: PriorSource) -> PriorImages:
    """The images of ``source``; broken ones are left out.

    Hashed are the images as a client would hold them: cropped to the centre, at the size and the channels of the prior.

    Raises:
        SettingsError: if they cannot be read, none is left, or they have no classes where ``classes`` asks for them.
    """
    if source.crops and source.data != "bundled":
        raise SettingsError(f"--crops with --data {source.data}: allowed with --data bundled")
    try:
        images = list_images(_settings(source))
        chosen = [index for index in range(source.skip, len(images)) if images.is_sound(index)]
    except SettingsError as error:
        raise SettingsError(_as_option(str(error))) from error
    if not chosen:
        raise SettingsError(f"--skip {source.skip}: no image is left of {len(images)}; allowed: fewer")
    whole = images.decode(chosen, source.channels)
    labels, classes = _labels(images, chosen) if source.classes else ([0] * len(chosen), ())
    notes = {"data": _basename(source.data), "images": len(chosen), HASHES: image_hashes(whole)}
    if source.data != "bundled":
        return PriorImages(list(whole), labels, classes, notes)
    names = [images.photographs[index] for index in chosen]
    scales = source.crops or (3, 4, 6)
    pictures = scaled_photographs(names, source.image_size, scales, source.channels)
    repeated = [label for label in labels for _ in scales]
    return PriorImages(pictures, repeated, classes, notes | {PHOTOGRAPHS: names})


def scaled_photographs(names: Sequence[str], image_size: int, crops: Sequence[int], channels: int = 3) -> list[Tensor]:
    """Every photograph at every scale, each float [C,H,W] in [-1, 1]."""
    pictures = []
    for picture in map(photograph, names):
        for fitting in crops:
            scale = fitting * image_size / min(picture.size)
            size = (round(picture.width * scale), round(picture.height * scale))
            pictures.append(to_tensor([picture.resize(size, Image.Resampling.LANCZOS)], channels)[0])
    return pictures


def _settings(source: PriorSource) -> DataSettings:
    for setting in source.settings:
        key = setting.partition("=")[0].strip()
        if key in _OF_CLIENTS or key.startswith("public"):
            raise SettingsError(f"--set {setting}: has no effect: a prior is trained on all images; allowed: unset")
        if key in ("name", "path", "image_size", "channels", "tiles_per_side"):
            raise SettingsError(f"--set {setting}: allowed: --data, --image-size, --grey, --crops, or another setting")
    where: dict[str, Any] = {"name": source.data}
    if source.data == "bundled":
        where |= {"photographs": list(TRAINING_PHOTOGRAPHS), "tiles_per_side": 1}
    elif source.data not in BUNDLED_SETS and _is_image_folder(Path(source.data)):
        where = {"name": "folder", "path": source.data}
    data = where | {"image_size": source.image_size, "channels": source.channels}
    return load_settings(Settings, {"data": data}, [f"data.{setting}" for setting in source.settings]).data


def _is_image_folder(path: Path) -> bool:
    """Whether it is a folder of image files: not what ``save_to_disk`` wrote, nor one of parquet files."""
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return path.is_dir() and not saved and not any(path.rglob("*.parquet"))


def _labels(images: ImageSet, chosen: Sequence[int]) -> tuple[list[int], tuple[str, ...]]:
    numbers = class_numbers(images, len(images.classes) + 1, "--classes", True)
    return [numbers[index] for index in chosen], images.classes


def _as_option(message: str) -> str:
    """An error of the settings in the words of the command line."""
    return message.replace("data.path =", "--data").replace("data.name =", "--data")


def _basename(data: str) -> str:
    """What the metadata calls the images: a folder's own name, without where it is."""
    return Path(data).resolve().name if Path(data).is_dir() else data
