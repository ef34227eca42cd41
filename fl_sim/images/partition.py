"""Who holds which images."""

import warnings
from collections import defaultdict
from collections.abc import Set
from functools import cache

from fl_sim.config import DataSettings, SettingsError
from fl_sim.draws import derive_seed, draw_image_indices
from fl_sim.errors import printable
from fl_sim.images.image_set import ImageSet
from fl_sim.images.sources import list_images


@cache
def partition(settings: DataSettings, clients: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """For each of ``clients`` clients, the indices into ``list_images(settings)`` that it holds.

    - ``iid`` deals out the shuffled images evenly.
    - ``dirichlet`` gives every client its own mixture of classes (arXiv 1905.12022).
    - ``photo`` gives client i all crops of photograph i, modulo the number of photographs.
    - ``folder`` gives client i the images in sub-folder i.

    Nobody holds the images of ``held_out_images``. ``seed`` is the private one; ``photo`` and ``folder`` do not use it
    but for these.

    Raises:
        SettingsError: if a client would be left without an image, or there is nothing to split by.
    """
    images, held_out = list_images(settings), held_out_images(settings, seed)
    if settings.partition == "folder":
        return _without(held_out, _by_folder(clients, images))
    if settings.partition == "photo":
        crops = _without(held_out, tuple(_grouped(images.photographs)))
        return tuple(crops[client % len(crops)] for client in range(clients))
    if clients > len(images) - len(held_out):
        aside = f", {len(held_out)} of them held out (data.held_out)" if held_out else ""
        raise SettingsError(
            f"federation.clients = {clients}: there are {len(images)} images for data.partition = "
            f"{settings.partition!r}{aside}; allowed: at most as many clients as images"
        )
    if settings.partition == "dirichlet":
        _check_classes(settings, images)
    return _deal(settings, clients, derive_seed(seed, "partition") % 2**32, images, held_out)


@cache
def held_out_images(settings: DataSettings, seed: int) -> frozenset[int]:
    """The indices of the share ``data.held_out`` of all images, drawn from the private ``seed``: no client holds them.

    The evaluator measures the model on them.
    """
    count = len(list_images(settings))
    number = round(settings.held_out * count)
    if settings.held_out == 0:
        return frozenset()
    if number == 0:
        raise SettingsError(
            f"data.held_out = {settings.held_out:g}: that is none of {count} images; allowed: 0, or more of them"
        )
    return frozenset(draw_image_indices(derive_seed(seed, "held-out"), number, count).tolist())


def _without(held_out: Set[int], held: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """What each client is left with."""
    left = tuple(tuple(index for index in indices if index not in held_out) for indices in held)
    for client, indices in enumerate(left):
        if not indices:
            raise SettingsError(
                f"data.held_out: all {len(held[client])} images of client {client} are held out; lower it"
            )
    return left


def _top_folder(name: str) -> str:
    """The first folder of an image's path; empty if it lies in none."""
    return name.partition("/")[0] if "/" in name else ""


def _grouped(owners: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Indices of the images of each owner, in the order in which the owners come first."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, owner in enumerate(owners):
        groups[owner].append(index)
    return [tuple(indices) for indices in groups.values()]


def _by_folder(clients: int, images: ImageSet) -> tuple[tuple[int, ...], ...]:
    owners = tuple(_top_folder(name) for name in images.photographs)
    if "" in owners:
        more = f" and {owners.count('') - 1} more" if owners.count("") > 1 else ""
        raise SettingsError(
            "data.partition = 'folder': not in a sub-folder of data.path: "
            f"{printable(images.photographs[owners.index('')])}{more}; put every image into that of its client"
        )
    if clients > len(images.folders):
        raise SettingsError(
            f"federation.clients = {clients}: data.path has {len(images.folders)} sub-folders for data.partition = "
            "'folder'; allowed: at most as many clients as sub-folders"
        )
    held = dict(zip(dict.fromkeys(owners), _grouped(owners), strict=True))
    for folder in images.folders[:clients]:
        if folder not in held:
            among = f" among the first {len(images)} (data.limit)" if len(images) < images.found else ""
            raise SettingsError(f"data.partition = 'folder': no images in sub-folder {printable(folder)}{among}")
    return tuple(held[folder] for folder in images.folders[:clients])


def _check_classes(settings: DataSettings, images: ImageSet) -> None:
    if not images.labels:
        raise SettingsError(f"data.partition = 'dirichlet': no labels to split by; {images.remedy}")
    if len(set(images.labels)) == 1:
        limit = f", or raise data.limit = {settings.limit}" if len(images) < images.found else ""
        raise SettingsError(
            f"data.partition = 'dirichlet': all images are of one class, {printable(images.labels[0])!r}; "
            f"{images.remedy}{limit}"
        )


def _deal(
    settings: DataSettings, clients: int, seed: int, images: ImageSet, held_out: Set[int]
) -> tuple[tuple[int, ...], ...]:
    """Partition with flwr-datasets, imported here because it takes seconds that the other partitions spare."""
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner

    numbers = {label: number for number, label in enumerate(dict.fromkeys(images.labels))}
    dealt = [index for index in range(len(images)) if index not in held_out]
    classes = [numbers[images.labels[index]] if images.labels else 0 for index in dealt]
    dataset = Dataset.from_dict({"index": dealt, "label": classes}).shuffle(seed=seed)
    partitioner: Partitioner = IidPartitioner(clients)
    if settings.partition == "dirichlet":
        partitioner = DirichletPartitioner(
            clients, partition_by="label", alpha=settings.dirichlet_alpha, min_partition_size=1, seed=seed
        )
    partitioner.dataset = dataset
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it draws again until everybody has an image, and warns each time
            return tuple(tuple(partitioner.load_partition(client)[:]["index"]) for client in range(clients))
    except ValueError as error:
        raise SettingsError(
            f"data.dirichlet_alpha = {settings.dirichlet_alpha}: no split of {len(dealt)} images leaves each of "
            f"{clients} clients one; raise it or lower federation.clients"
        ) from error
