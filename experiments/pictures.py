"""Images float [C,H,W] in [0, 1] as PNG files and as what an HTML page can embed."""

import base64
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

GRID_ENLARGEMENT = 8


def to_picture(image: Tensor) -> Image.Image:
    """The image as an 8-bit picture, grey or RGB."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))


def data_uri(png: bytes) -> str:
    """The PNG file as a URI that an ``img`` tag takes."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def image_uri(image: Tensor) -> str:
    """The image as a URI, pixel by pixel."""
    return data_uri(png_of(to_picture(image)))


def png_of(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """The images [N,C,H,W] side by side, row by row, each pixel enlarged to a visible square.

    Without ``columns`` the grid is nearly square.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    height, width = images.shape[-2:]
    sheet = Image.new("RGB", (columns * (width + 1) - 1, math.ceil(len(images) / columns) * (height + 1) - 1), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(to_picture(image), (column * (width + 1), row * (height + 1)))
    return sheet.resize((sheet.width * GRID_ENLARGEMENT, sheet.height * GRID_ENLARGEMENT), Image.Resampling.NEAREST)


def save_grid(path: Path, images: Tensor, columns: int | None = None) -> None:
    """Write the ``grid`` of the images [N,C,H,W] as a PNG file."""
    grid(images, columns).save(path, format="PNG")
