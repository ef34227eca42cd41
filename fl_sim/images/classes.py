"""The number of each image's class, as classifiers and class-conditional networks use it."""

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


def count_classes(images: ImageSet) -> int:
    """How many classes a classifier of these images has to tell apart.

    Raises:
        SettingsError: if images have no label, there is but one class, or a class has no image.
    """
    _check_labels(images, "task = 'classification'")
    if len(set(images.labels)) == 1:
        raise SettingsError(
            f"task = 'classification': all images are of one class, {images.labels[0]!r}; allowed: two classes at "
            f"least; {images.remedy}"
        )
    for name in images.classes:
        if name not in images.labels:
            among = f" among the first {len(images)} (data.limit)" if len(images) < images.found else ""
            raise SettingsError(
                f"task = 'classification': class {name!r} has no image{among}; allowed: one at least for each of "
                f"{len(images.classes)} classes"
            )
    return len(images.classes)


def check_sound_classes(images: ImageSet) -> None:
    """Refuse images of which a whole class is broken, as far as they were met; SettingsError names it."""
    for name in images.classes:
        held = [place for place, label in enumerate(images.labels) if label == name]
        if held and images.broken.keys() >= set(held):
            raise SettingsError(
                f"task = 'classification': class {name!r} has no image that can be read: {images.broken[held[0]]}"
            )


@lru_cache(maxsize=8)
def class_numbers(images: ImageSet, rows: int, key: str, null_class: bool) -> tuple[int, ...]:
    """For each image the number of its class, for a network that distinguishes ``rows`` classes.

    ``key`` is the setting that says how many, for messages. With ``null_class`` the network's last class stands for a
    label that was dropped, and is no image's.

    Raises:
        SettingsError: if images have no label, or there are more classes than the network knows.
    """
    _check_labels(images, f"{key} = {rows}")
    number = {name: place for place, name in enumerate(images.classes)}
    needed = len(set(images.classes) - set(UNLABELLED)) + null_class
    if needed > rows:
        null = ", of which the last is that of dropped labels (client.label_dropout)" if null_class else ""
        raise SettingsError(
            f"{key} = {rows}: the images have {needed - null_class} classes; allowed: at least {needed}{null}"
        )
    return tuple(number[label] for label in images.labels)


def _check_labels(images: ImageSet, setting: str) -> None:
    """Refuse images without labels, because of ``setting``."""
    if not images.labels or set(images.labels) == {NO_FOLDER}:
        raise SettingsError(f"{setting}: the network takes class labels, and the images have none; {images.remedy}")
    for name in UNLABELLED:
        if name in images.labels:
            raise SettingsError(
                f"data.name: an image has the label {name}; allowed: whole numbers from 0, or names, for every image"
            )
