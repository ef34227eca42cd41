"""Image files of any kind to grey or RGB pixels: upright, opaque, eight bits. All sources use these rules."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from fl_sim.config import SettingsError
from fl_sim.errors import printable

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "PPM", "GIF")
"""Formats that are read, as Pillow calls them; others, such as EPS, would start another program."""

MODES = {1: "L", 3: "RGB"}
"""Number of channels -> the mode of Pillow's pictures. "L" is 0.299 R + 0.587 G + 0.114 B."""

_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_EIGHT_BITS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})


class BrokenImageError(SettingsError):
    """An image whose content cannot be read, on any machine and at any time."""


def identify(source: Path | bytes, name: str) -> None:
    """Read the header of an image file, given by its path or content; error messages call it ``name``.

    Raises:
        BrokenImageError: if it is no image, or one whose pixels have no known range.
        SettingsError: if the file cannot be opened.
    """
    with _opened(source, name):
        pass


def read_rgb(source: Path | bytes, name: str) -> Image.Image:
    """The first picture in an image file, RGB; error messages call the file ``name``.

    It is turned as its EXIF orientation says. Transparent pixels become white. 16-bit grey is scaled by its range.

    Raises:
        BrokenImageError: if its content cannot be read, or its pixels have no known range.
        SettingsError: if the file cannot be opened.
    """
    with _opened(source, name) as picture:
        picture.load()
        upright = _upright(picture)
        if picture.mode.startswith("I"):
            return _from_sixteen_bits(upright, white_is_zero=_photometric(picture) == 0)
        return _over_white(upright) if upright.has_transparency_data else upright.convert("RGB")


def centre_crop(picture: Image.Image, height_width: tuple[int, int]) -> Image.Image:
    """The largest centred part of the picture that has the shape of ``height_width``, resized to that size."""
    height, width = height_width
    inner_width = max(1, min(picture.width, round(picture.height * width / height)))
    inner_height = max(1, min(picture.height, round(picture.width * height / width)))
    left, top = (picture.width - inner_width) // 2, (picture.height - inner_height) // 2
    box = (left, top, left + inner_width, top + inner_height)
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=box)


def to_tensor(pictures: Sequence[Image.Image], channels: int = 3) -> Tensor:
    """Pictures of one size, grey or RGB, as float32 [N,channels,H,W] in [-1, 1]."""
    pixels = np.stack([np.asarray(picture.convert(MODES[channels])) for picture in pictures])
    pixels = pixels.reshape(*pixels.shape[:3], channels)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of panoramas, damaged EXIF data …; what cannot be read is an error
            # A file object, not the path: given a path, Pillow maps some files into memory and turns such a TIFF twice.
            with (
                source.open("rb") if isinstance(source, Path) else BytesIO(source) as file,
                Image.open(file, formats=FORMATS) as picture,
            ):
                _check_pixels(picture)
                yield picture
    except Exception as error:  # for a damaged file Pillow raises anything from OSError to struct.error
        kind = BrokenImageError if _is_broken(error) else SettingsError
        raise kind(f"{printable(name)}: not a readable image: {_reason(source, error)}") from error


def _check_pixels(picture: Image.Image) -> None:
    """Refuse pixels without a known range. Pillow's mode "I" has one only for formats of at most 16 bits."""
    if picture.mode in _EIGHT_BITS | _SIXTEEN_BITS or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        return
    if kind := {"F": "floating-point", "I": "32-bit integer"}.get(picture.mode):
        raise ValueError(f"{kind} pixels have no known range; scale them and save as 8- or 16-bit PNG")
    raise ValueError(f"{picture.mode} pixels; save it as RGB")


def _is_broken(error: Exception) -> bool:
    """Whether the content is at fault: not so if the system refused to open or read the file, or had no memory."""
    return not isinstance(error, MemoryError) and getattr(error, "errno", None) is None


def _reason(source: Path | bytes, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        return "no image format that is known" if size else "the file is empty"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller"
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return printable(" ".join(reason.split())) or type(error).__name__


def _upright(picture: Image.Image) -> Image.Image:
    with suppress(Exception):  # EXIF data that cannot be read tells no orientation
        return ImageOps.exif_transpose(picture)
    return picture


def _photometric(picture: Image.Image) -> int | None:
    """A TIFF file's PhotometricInterpretation, else None. 0: white is zero, which Pillow inverts at eight bits only."""
    return getattr(picture, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)


def _from_sixteen_bits(picture: Image.Image, white_is_zero: bool) -> Image.Image:
    levels = np.asarray(picture).astype(np.int32)
    grey = ((levels + 128) // 257).astype(np.uint8)
    grey = 255 - grey if white_is_zero else grey
    if isinstance(transparent := picture.info.get("transparency"), int):
        grey[levels == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _over_white(picture: Image.Image) -> Image.Image:
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
