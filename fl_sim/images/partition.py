"""Who holds which images."""

import warnings
from collections import defaultdict
from functools import cache

from fl_sim.config import DataSettings, SettingsError
from fl_sim.draws import derive_seed
from fl_sim.images.image_set import ImageSet
from fl_sim.images.pixels import printable
from fl_sim.images.sources import list_images


@cache
def partition(settings: DataSettings, clients: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """For each of ``clients`` clients, the indices into ``list_images(settings)`` that it holds.

    - ``iid`` deals out the shuffled images evenly.
    - ``dirichlet`` gives every client its own mixture of classes (arXiv 1905.12022).
    - ``photo`` gives client i all crops of photograph i, modulo the number of photographs.
    - ``folder`` gives client i the images in sub-folder i.

    ``seed`` is the private one; ``photo`` and ``folder`` do not use it.

    Raises:
        SettingsError: if a client would be left without an image, or there is nothing to split by.
    """
    images = list_images(settings)
    if settings.partition == "folder":
        return _by_folder(clients, images)
    if settings.partition == "photo":
        crops = _grouped(images.photographs)
        return tuple(crops[client % len(crops)] for client in range(clients))
    if clients > len(images):
        raise SettingsError(
            f"federation.clients = {clients}: there are {len(images)} images for data.partition = "
            f"{settings.partition!r}; allowed: at most as many clients as images"
        )
    if settings.partition == "dirichlet":
        _check_classes(settings, images)
    return _deal(settings, clients, derive_seed(seed, "partition") % 2**32, images)


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


def _deal(settings: DataSettings, clients: int, seed: int, images: ImageSet) -> tuple[tuple[int, ...], ...]:
    """Partition with flwr-datasets, imported here because it takes seconds that the other partitions spare."""
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner

    numbers = {label: number for number, label in enumerate(dict.fromkeys(images.labels))}
    classes = [numbers[label] for label in images.labels] or [0] * len(images)
    dataset = Dataset.from_dict({"index": range(len(images)), "label": classes}).shuffle(seed=seed)
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
            f"data.dirichlet_alpha = {settings.dirichlet_alpha}: no split of {len(images)} images leaves each of "
            f"{clients} clients one; raise it or lower federation.clients"
        ) from error
