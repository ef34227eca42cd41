"""The images of a run in words: how many are used, what was skipped, who holds how many."""

from collections.abc import Sequence, Set
from statistics import median_low

from fl_sim.config import Settings
from fl_sim.errors import printable
from fl_sim.images.folder import count_skipped
from fl_sim.images.image_set import ImageSet
from fl_sim.images.partition import held_out_images, partition
from fl_sim.images.sources import list_images

NAMED = 3
"""Broken images up to which each is named."""
LISTED = 8
"""Clients or names up to which each is listed; more are summarised."""


def describe_images(settings: Settings) -> list[str]:
    """Lines of plain text about the data of a run with these (resolved) settings.

    Raises:
        SettingsError: if the images cannot be listed or split among the clients.
    """
    images, clients = list_images(settings.data), settings.federation.clients
    seed = settings.client.seed or 0
    held, aside = partition(settings.data, clients, seed), held_out_images(settings.data, seed)
    used = aside.union(*held)
    sound = len(used - images.broken.keys())
    held_out = f"; {len(aside)} are held out" if aside else ""
    return [
        _used(images, sound),
        _held([len(indices) for indices in held]) + held_out + _unheld(settings, images, used),
    ]


def _used(images: ImageSet, used: int) -> str:
    limit = " (data.limit)" if len(images) < images.found else ""
    number = f"{used} of {images.found}" if used < images.found else f"{used}"
    return (
        f"data: {number} image{'s' * (images.found != 1)} used{limit}{count_skipped(images.skipped)}{_broken(images)}"
    )


def _broken(images: ImageSet) -> str:
    """The images that are skipped because they cannot be read, as far as they were met."""
    if not images.broken:
        return ""
    lines = [line for _, line in sorted(images.broken.items())]
    more = f" and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
    return f"; skipped: {len(lines)} broken: {'; '.join(lines[:NAMED])}{more}"


def _held(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"the client holds {numbers[0]} image{'s' * (numbers[0] != 1)}"
    if len(numbers) <= LISTED:
        return f"clients hold {', '.join(map(str, numbers))} images"
    if min(numbers) == max(numbers):
        return f"{len(numbers)} clients hold {numbers[0]} image{'s' * (numbers[0] != 1)} each"
    return f"{len(numbers)} clients hold {min(numbers)} to {max(numbers)} images, the median one {median_low(numbers)}"


def _unheld(settings: Settings, images: ImageSet, used: Set[int]) -> str:
    """What no client holds: sub-folders if the partition is by folder, else photographs."""
    if settings.data.partition == "folder":
        names = list(images.folders[settings.federation.clients :])
    else:
        names = list(dict.fromkeys(name for index, name in enumerate(images.photographs) if index not in used))
    if not names:
        return ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"; held by nobody: {', '.join(map(printable, names[:LISTED]))}{more}"
