"""What a guess would have got: the public image nearest to each private one, and the chance level of a metric.

A reconstruction says something only if it is closer to its original than these two:

- the nearest public image, the best that anybody can show who has no update and picks as luckily as possible;
- the chance level: how close reconstructions are to private images that are not their own.

Only the evaluator computes them, as only it has the originals. Images are [N,C,H,W] in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.public_images import image_hashes, public_images
from experiments.settings import ExperimentSettings
from fl_sim.config import DataSettings, SettingsError
from fl_sim.draws import derive_seed, seeded_generator
from fl_sim.images.bundled import PHOTOGRAPHS
from fl_sim.images.image_set import ImageSet
from fl_sim.images.partition import partition
from fl_sim.images.sources import list_images

MOST_BYTES = 256 * 2**20
"""Memory of the public images that are used, as float32, at most."""
CHUNK = 1_024
"""Images of each side whose distances are held at once."""


@dataclass(frozen=True)
class PublicPool:
    """Images [M,C,H,W] in [0, 1] that no client of a run holds, and what to call them."""

    name: str
    images: Tensor


def public_pool(settings: ExperimentSettings, channels: int, most: int = 1_000) -> PublicPool | None:
    """The public images of a run with these (resolved) settings, for private images of so many channels.

    Of the clients' own set, which may be large and slow to decode, ``most`` are used, spread over all.

    These are the images of ``data.public`` if it is set; else those of the clients' own data set that no client holds;
    else the bundled photographs that no client holds, cut into tiles. None if there is none of these.

    Raises:
        SettingsError: if the images cannot be listed or read.
    """
    data = settings.data
    if data.public.name is not None:
        images = (public_images(data, channels) + 1) / 2
        return PublicPool(f"the {len(images)} images of data.public.name = {data.public.name!r}", images)
    if settings.client.seed is None:
        raise SettingsError("client.seed is not set; which images are public follows from resolved settings")
    held = {index for each in partition(data, settings.federation.clients, settings.client.seed) for index in each}
    listed = list_images(data.model_copy(update={"strict": False}))
    unheld = _decode_some(listed, [index for index in range(len(listed)) if index not in held], channels, most)
    if len(unheld):
        return PublicPool(f"{len(unheld)} images of data.name = {data.name!r} that no client holds", unheld)
    private = data.photographs if data.name == "bundled" else ()
    names = tuple(name for name in PHOTOGRAPHS if name not in private)
    if not names:
        return None
    tiles = list_images(DataSettings(photographs=names, image_size=data.image_size))
    images = _decode_some(tiles, list(range(len(tiles))), channels, most)
    return PublicPool(f"{len(images)} tiles of the bundled photographs {', '.join(names)}", images)


def nearest_public(truth: Tensor, public: Tensor) -> Tensor:
    """For each of ``truth`` [N,C,H,W] the public image [M,C,H,W] with the smallest MSE to it; [N,C,H,W].

    A public image that equals one of ``truth``, at eight bits a channel, is passed over: some client holds it.

    Raises:
        ValueError: if no public image is left.
    """
    held = set(image_hashes(truth * 2 - 1))
    public = public[[digest not in held for digest in image_hashes(public * 2 - 1)]]
    if not len(public):
        raise ValueError("no public image is left beside the private ones")
    # |x - y|^2 = |x|^2 - 2 x.y + |y|^2, whose first part does not matter; about grey, where float32 rounds less.
    first, second = (images.float().flatten(1) - 0.5 for images in (truth, public))
    norms = second.square().sum(dim=1)
    return public[torch.cat([_nearest(part, second, norms) for part in first.split(CHUNK)])]


def chance_level(
    metric: Callable[[Tensor, Tensor], Tensor], reconstructed: Tensor, truth: Tensor, pairs: int = 500
) -> float:
    """The median of ``metric`` between reconstructions [N,C,H,W] and private images [N,C,H,W] that are not their own.

    ``truth[i]`` is the original of ``reconstructed[i]``. Where the same image was attacked several times, none of these
    is another one of the others. Of more than ``pairs`` pairs as many are drawn, always the same, every reconstruction
    equally often. NaN if there is no other image.
    """
    first, second = _pairs_of_others(truth, pairs)
    if not len(first):
        return float("nan")
    parts = zip(first.split(CHUNK), second.split(CHUNK), strict=True)
    return torch.cat([metric(truth[other], reconstructed[found]) for found, other in parts]).nanquantile(0.5).item()


def _pairs_of_others(truth: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Indices int64 [P], P <= ``most``, of reconstructions and, for each, of an image that is not its original."""
    count, hashes = len(truth), image_hashes(truth * 2 - 1)
    numbers = {digest: number for number, digest in enumerate(dict.fromkeys(hashes))}
    content = torch.tensor([numbers[digest] for digest in hashes])
    if count * count <= most:
        first, second = torch.cartesian_prod(torch.arange(count), torch.arange(count)).unbind(dim=1)
    else:
        first = torch.arange(most) % count
        second = torch.randint(count, (most,), generator=seeded_generator(derive_seed(0, "chance")))
    others = content[first] != content[second]
    return first[others], second[others]


def _nearest(first: Tensor, second: Tensor, norms: Tensor) -> Tensor:
    """For each row of ``first`` [N,D] the index of the row of ``second`` [M,D] nearest to it; ``norms`` [M] squared."""
    best = torch.full((len(first),), torch.inf)
    index = torch.zeros(len(first), dtype=torch.long)
    for start in range(0, len(second), CHUNK):
        part = slice(start, start + CHUNK)
        distances, nearest = (norms[part] - 2 * first @ second[part].T).min(dim=1)
        closer = distances < best
        best, index = torch.where(closer, distances, best), torch.where(closer, nearest + start, index)
    return index


def _decode_some(images: ImageSet, indices: list[int], channels: int, most: int) -> Tensor:
    """Those at ``indices`` that can be read, or ``most`` spread over them if they are more; [M,C,H,W] in [0, 1]."""
    height, width = images.height_width
    count = min(most, MOST_BYTES // (4 * channels * height * width), len(indices))
    chosen = [indices[place * len(indices) // count] for place in range(count)]
    sound = list(filter(images.is_sound, chosen))
    return (images.decode(sound, channels) + 1) / 2 if sound else torch.empty(0, channels, height, width)
