"""The images of a federation: listed without decoding any, decoded on request."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from PIL import Image
from torch import Tensor

from fl_sim.images.pixels import BrokenImageError, to_tensor

CACHE_BYTES = 64 * 2**20
"""Size of the decoded crops that a process keeps, so that an image that is drawn again is not decoded again."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The images of a federation in a fixed order; ``decode`` reads some of them.

    Attributes:
        height_width: of every image, in pixels.
        photographs: for each image, the photograph or file from which it was cropped.
        labels: for each image, the name of its class; empty if there are no classes.
        classes: the names of all classes, in the order of their numbers.
        remedy: which setting would give more than one class, for messages.
        crop: the image at an index, grey or RGB, H x W pixels; BrokenImageError, naming the image, if it is broken.
        identify: checks the header of the image at an index without decoding; BrokenImageError likewise.
        strict: whether a broken image is an error rather than skipped.
        found: number of images before ``data.limit``.
        skipped: number of files that are no images, by kind.
        folders: the top-level sub-folders, sorted.
        broken: index -> what is wrong with that image, of those that were met so far.
    """

    height_width: tuple[int, int]
    photographs: tuple[str, ...]
    labels: tuple[str, ...]
    remedy: str
    crop: Callable[[int], Image.Image]
    found: int
    classes: tuple[str, ...] = ()
    identify: Callable[[int], None] = lambda _: None
    strict: bool = False
    skipped: Counter[str] = field(default_factory=Counter)
    folders: tuple[str, ...] = ()
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.photographs)

    def class_of(self, index: int) -> int:
        """The number of an image's class, 0..len(classes)-1; only where there are classes."""
        return self.classes.index(self.labels[index])

    def identify_all(self) -> None:
        """Look at the header of every image; what is broken is noted in ``broken``.

        Raises:
            BrokenImageError: naming the first broken image, if ``strict``.
        """
        for index in range(len(self)):
            self._passes(index, self.identify)

    def is_sound(self, index: int) -> bool:
        """Whether the image at ``index`` can be decoded; if not, it is noted in ``broken``.

        That depends on nothing but the image's content, so that all who ask agree.

        Raises:
            BrokenImageError: naming the image, if it is broken and ``strict``.
            SettingsError: if the file cannot be opened.
        """
        return self._passes(index, self._picture)

    def decode(self, indices: Iterable[int], channels: int = 3) -> Tensor:
        """The images at ``indices``, float32 [N,channels,H,W] in [-1, 1]; 1 channel: grey, 3: RGB.

        Raises:
            SettingsError: naming an image that cannot be read.
        """
        return to_tensor([self._picture(index) for index in indices], channels)

    def _passes(self, index: int, check: Callable[[int], object]) -> bool:
        if index in self.broken:
            return False
        try:
            check(index)
        except BrokenImageError as error:
            if self.strict:
                raise
            self.broken[index] = str(error)
        return index not in self.broken

    @cached_property
    def _picture(self) -> Callable[[int], Image.Image]:
        return lru_cache(maxsize=max(1, CACHE_BYTES // (3 * math.prod(self.height_width))))(self.crop)
