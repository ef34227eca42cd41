"""The number of each image's class, as a class-conditional network is told it."""

import re
from functools import lru_cache

from fl_sim.config import SettingsError
from fl_sim.images.image_set import ImageSet

NO_FOLDER = "."
"""The label of an image that lies in no sub-folder."""


@lru_cache(maxsize=8)
def class_numbers(images: ImageSet, rows: int, null_class: bool) -> tuple[int, ...]:
    """For each image the number of its class, for a network that distinguishes ``rows`` classes.

    Labels that are whole numbers, as those of a dataset's class labels, keep them; names are numbered from 0 in
    alphabetical order. With ``null_class`` the network's last class stands for a label that was dropped, and is no
    image's.

    Raises:
        SettingsError: if images have no label, or a class has no number that the network knows.
    """
    labels = images.labels
    if not labels or set(labels) == {NO_FOLDER}:
        raise SettingsError(
            f"num_class_embeds = {rows}: the network takes class labels, and the images have none; {images.remedy}"
        )
    names = sorted(set(labels))
    whole = all(re.fullmatch(r"-?[0-9]+", name) for name in names)
    number = {name: int(name) if whole else place for place, name in enumerate(names)}
    if min(number.values()) < 0:
        unlabelled = min(names, key=int)
        raise SettingsError(f"data.name: an image has the label {unlabelled}; allowed: whole numbers from 0, or names")
    needed = max(number.values()) + 1 + null_class
    if needed > rows:
        null = ", of which the last is that of dropped labels (client.label_dropout)" if null_class else ""
        raise SettingsError(
            f"num_class_embeds = {rows}: the images have {needed - null_class} classes; "
            f"allowed: at least {needed}{null}"
        )
    return tuple(number[label] for label in labels)
