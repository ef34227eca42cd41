"""Public images, which no client holds, beside the private ones."""

import re
from hashlib import sha256

import torch
from torch import Tensor

from fl_sim.config import DataSettings, ImageSource, SettingsError
from fl_sim.draws import seeded_generator
from fl_sim.images.sources import list_images

_KEY = re.compile(rf"\bdata\.(?=({'|'.join(ImageSource.model_fields)})\b)")


def public_images(data: DataSettings, channels: int) -> Tensor:
    """The images of ``data.public``, [M,C,H,W] in [-1, 1], of the size of the private ones.

    Raises:
        SettingsError: if they cannot be listed, none can be read, or one is a private image as well.
    """
    shared = {"image_size": data.image_size, "strict": data.strict}
    try:
        public = read_all(DataSettings.model_validate(data.public.model_dump() | shared), channels)
    except SettingsError as error:
        raise SettingsError(_KEY.sub("data.public.", str(error))) from error
    check_disjoint(public, read_all(data, channels), f"data.public.{_named(data.public)}")
    return public


def read_all(source: DataSettings, channels: int) -> Tensor:
    """All images of ``source`` that can be read, [M,C,H,W] in [-1, 1].

    Raises:
        SettingsError: if they cannot be listed, or none can be read.
    """
    images = list_images(source)
    sound = [index for index in range(len(images)) if images.is_sound(index)]
    if not sound:
        raise SettingsError(f"data.{_named(source)}: none of its {len(images)} images can be read")
    return images.decode(sound, channels)


def check_disjoint(public: Tensor, private: Tensor, subject: str = "public images") -> None:
    """Check that no image of ``public`` [M,C,H,W] is, pixel by pixel, one of ``private`` [N,C,H,W].

    Raises:
        SettingsError: if one is; ``subject`` says in it which public images.
    """
    held = set(image_hashes(private))
    shared = sum(digest in held for digest in image_hashes(public))
    if shared:
        raise SettingsError(
            f"{subject}: {shared} of {len(public)} are private images as well; allowed: images that no client holds"
        )


def draw_blindly(public: Tensor, count: int, seed: int) -> Tensor:
    """``count`` of the public images [M,C,H,W] in [-1, 1], in [0, 1]: what somebody finds who only guesses."""
    drawn = torch.randint(len(public), (count,), generator=seeded_generator(seed))
    return (public[drawn] + 1) / 2


def _named(source: ImageSource) -> str:
    """The setting that says where the images are."""
    return f"path = {str(source.path)!r}" if source.name == "folder" else f"name = {source.name!r}"


def image_hashes(images: Tensor) -> list[str]:
    """The SHA-256 of each of ``images`` [N,C,H,W] in [-1, 1]: of its 8-bit pixels in the order [C,H,W], hexadecimal."""
    pixels = ((images + 1) * 127.5).round().byte()
    return [sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in pixels]
