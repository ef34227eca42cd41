"""The images of a federation: listed without decoding any, decoded on request."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fl_sim.images.pixels import to_tensor

CACHE_BYTES = 64 * 2**20
"""Size of the decoded crops that a process keeps, so that an image that is drawn again is not decoded again."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The images of a federation in a fixed order; ``decode`` reads some of them.

    Attributes:
        size: side of every image in pixels, S.
        photographs: for each image, the photograph or file from which it was cropped.
        labels: for each image, its class; empty if there are no classes.
        remedy: which setting would give more than one class, for messages.
        crop: the image at an index, RGB, S x S pixels; SettingsError, naming the image, if it cannot be read.
        identify: checks the headers of all images without decoding; SettingsError likewise.
        found: number of images before ``data.limit``.
        skipped: number of files that are no images, by kind.
        folders: the top-level sub-folders, sorted.
    """

    size: int
    photographs: tuple[str, ...]
    labels: tuple[str, ...]
    remedy: str
    crop: Callable[[int], Image.Image]
    found: int
    identify: Callable[[], None] = lambda: None
    skipped: Counter[str] = field(default_factory=Counter)
    folders: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.photographs)

    def decode(self, indices: Iterable[int]) -> Tensor:
        """The images at ``indices``, float32 [N,3,S,S] in [-1, 1].

        Raises:
            SettingsError: naming an image that cannot be read.
        """
        return to_tensor([self._pixels(index) for index in indices])

    @cached_property
    def _pixels(self) -> Callable[[int], NDArray[Any]]:
        @lru_cache(maxsize=max(1, CACHE_BYTES // (3 * self.size**2)))
        def pixels(index: int) -> NDArray[Any]:
            return np.asarray(self.crop(index))

        return pixels
