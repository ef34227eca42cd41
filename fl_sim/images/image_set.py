"""What is known of the federation's images without decoding any, and the way to decode some."""

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
"""Decoded crops that a process keeps, so that images drawn again are not decoded again."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The images of a federation in a fixed order, listed; ``decode`` reads those that are asked for.

    ``photographs`` and ``labels`` name for each image what it was cut from and its class; ``labels`` is empty where
    there are none, and ``remedy`` says what to set for more than one class. ``crop`` gives one image as RGB picture of
    ``size`` x ``size`` pixels, ``identify`` looks at every image without decoding; both raise SettingsError, naming the
    image. ``found`` images were there before ``data.limit``; ``skipped`` counts what is no image, by kind; ``folders``
    are the top-level sub-folders, sorted.
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
        """These images, float32 [N,3,S,S] in [-1, 1].

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
