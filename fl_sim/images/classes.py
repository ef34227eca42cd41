"""The number of each image's class, as a class-conditional network is told it."""

import re
from collections.abc import Collection
from functools import lru_cache

from fl_sim.config import SettingsError
from fl_sim.images.image_set import ImageSet

NO_FOLDER = "."
"""The label of an image that lies in no sub-folder."""
UNLABELLED = ("-1", "None")
"""The labels of a dataset's rows that have none."""


def order_classes(labels: Collection[str]) -> tuple[str, ...]:
    """The names of all classes, in the order of their numbers; those of images without a label come last.

    Labels that are whole numbers keep them, also where some are missing. Others are in alphabetical order.

    >>> order_classes(["dog", "cat", "dog"])
    ('cat', 'dog')
    >>> order_classes(["3", "1"])
    ('0', '1', '2', '3')
    """
    names = sorted(set(labels) - set(UNLABELLED))
    if names and all(re.fullmatch(r"0|[1-9][0-9]{0,3}", name) for name in names):
        names = [str(number) for number in range(max(map(int, names)) + 1)]
    return (*names, *(name for name in UNLABELLED if name in labels))


@lru_cache(maxsize=8)
def class_numbers(images: ImageSet, rows: int, null_class: bool) -> tuple[int, ...]:
    """For each image the number of its class, for a network that distinguishes ``rows`` classes.

    With ``null_class`` the network's last class stands for a label that was dropped, and is no image's.

    Raises:
        SettingsError: if images have no label, or there are more classes than the network knows.
    """
    if not images.labels or set(images.labels) == {NO_FOLDER}:
        raise SettingsError(
            f"num_class_embeds = {rows}: the network takes class labels, and the images have none; {images.remedy}"
        )
    for name in UNLABELLED:
        if name in images.labels:
            raise SettingsError(
                f"data.name: an image has the label {name}; allowed: whole numbers from 0, or names, for every image"
            )
    number = {name: place for place, name in enumerate(images.classes)}
    needed = len(set(images.classes) - set(UNLABELLED)) + null_class
    if needed > rows:
        null = ", of which the last is that of dropped labels (client.label_dropout)" if null_class else ""
        raise SettingsError(
            f"num_class_embeds = {rows}: the images have {needed - null_class} classes; "
            f"allowed: at least {needed}{null}"
        )
    return tuple(number[label] for label in images.labels)
