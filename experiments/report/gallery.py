"""Every attacked image of a run: its row of the leakage table, its pictures, and what a guess would show."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from attacks.observation import UpdateId
from experiments import metrics
from experiments.chance import chance_level, nearest_public, public_pool
from experiments.leakage import OK, USER, Truth, match, observing_peer, shared_truth, summed_truth
from experiments.pictures import to_picture
from experiments.report.run import Run
from experiments.rounds import clients_behind
from experiments.summary import RECOGNISABLE_DB, with_content
from fl_sim.config import SettingsError

MOST_BYTES = 10_000_000
"""Pictures that together take more are stored with losses, so that the page still opens quickly."""

LOSSLESS: dict[str, Any] = {"lossless": True, "quality": 0, "method": 0}
LOSSY: dict[str, Any] = {"quality": 90}
"""How Pillow writes WebP; without losses the quickest way is hardly larger than the best one."""

_Images = dict[int, Tensor]
"""Images float [C,H,W] in [0, 1] by the row of the leakage table that they belong to."""


@dataclass(frozen=True)
class Guess:
    """What somebody would show who has seen no update, in dB of PSNR.

    Attributes:
        source: which images are public.
        nearest_psnr: the median over the originals of their nearest public image.
        nearest_recognisable: the share of originals whose nearest public image already passes for recognisable.
        level: by attack, the median between its reconstructions and private images that are not their own.
    """

    source: str
    nearest_psnr: float
    nearest_recognisable: float
    level: Mapping[str, float]


@dataclass(frozen=True)
class Gallery:
    """What a report shows of a run's images.

    Attributes:
        table: the leakage table with the columns ``original``, ``found`` and ``nearest``, numbers of ``pictures`` (NA
            where there is none), and ``nearest_psnr``, of the nearest public image in dB.
        pictures: WebP files as base64, each content once.
        exact: whether the pictures are stored without losses.
        guess: None if it could not be computed.
        absent: what cannot be shown, with the reason.
    """

    table: pd.DataFrame
    pictures: list[str]
    exact: bool
    guess: Guess | None
    absent: list[tuple[str, str]] = field(default_factory=list)


def read_gallery(run: Run) -> Gallery:
    """The images of a run."""
    originals, found, absent = _images(run)
    nearest: _Images = {}
    source = ""
    try:
        source, nearest = _nearest_public(run, originals)
    except SettingsError as error:
        absent["The nearest public images"] = str(error)
    pictures = _Pictures()
    numbers = {
        column: pd.Series({row: pictures.add(image) for row, image in images.items()}, dtype="Int64")
        for column, images in (("original", originals), ("found", found), ("nearest", nearest))
    }
    psnr = pd.Series(_psnr(originals, nearest), dtype="float64")
    table = run.leakage.assign(**numbers, nearest_psnr=psnr.reindex(run.leakage.index))
    encoded, exact = pictures.encoded()
    pairs = run.settings.metrics.chance_pairs
    guess = _guess(source, table, originals, found, pairs) if nearest else None
    return Gallery(table, encoded, exact, guess, list(absent.items()))


def _images(run: Run) -> tuple[_Images, _Images, dict[str, str]]:
    """Originals and reconstructions; and what of them could not be read, with the reason."""
    originals: _Images = {}
    found: _Images = {}
    absent: dict[str, str] = {}
    for (*key, observer), rows in run.leakage.groupby(["round", "client", "observer"], sort=True):
        round_number, client = (int(str(part)) for part in key)
        update = UpdateId(round_number, client, observing_peer(str(observer)))
        truth = None
        try:
            truth = summed_truth(run.settings, run.recipe, clients_behind(run.rounds, update), round_number)
        except SettingsError as error:
            absent["Originals in this report"] = str(error)
        for of_user, alike in rows.groupby(rows["image"] == USER, sort=False):
            compared = shared_truth(truth) if truth and of_user else truth
            reconstructed = {attack: _load(run, update, attack, compared) for attack in alike["attack"].unique()}
            for index, (_, of_image) in enumerate(alike["attack"].groupby(alike["image"], sort=False)):
                for row, attack in of_image.items():
                    if compared is not None:
                        originals[int(str(row))] = compared.images[index]
                    if (images := reconstructed[attack]) is not None:
                        found[int(str(row))] = images[index]
    return originals, found, absent


def _load(run: Run, update: UpdateId, attack: str, truth: Truth | None) -> Tensor | None:
    """A reconstruction's images in the order of the truth, None if there is no such file."""
    found = run.directory.load_reconstruction(update, attack)
    if found is None:
        return None
    return match(truth.images, found.images) if truth else found.images


def _nearest_public(run: Run, originals: _Images) -> tuple[str, _Images]:
    """What the public images are called, and the one nearest to each original; SettingsError if there is none."""
    if not originals:
        return "", {}
    truth = torch.stack(list(originals.values()))
    pool = public_pool(run.settings, truth.shape[1])
    if pool is None:
        raise SettingsError("the clients hold every image that there is")
    try:
        return pool.name, dict(zip(originals, nearest_public(truth, pool.images), strict=True))
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _psnr(originals: _Images, others: _Images) -> dict[int, float]:
    """PSNR in dB of ``others`` against the originals, by row."""
    if not others:
        return {}
    values = metrics.psnr(torch.stack([originals[row] for row in others]), torch.stack(list(others.values())))
    return dict(zip(others, values.tolist(), strict=True))


def _guess(source: str, table: pd.DataFrame, originals: _Images, found: _Images, pairs: int) -> Guess:
    """The levels of a guess from so many pairs; without pairs, of the nearest public images alone."""
    evidence = with_content(table)
    nearest = evidence.drop_duplicates(["round", "client", "image"])["nearest_psnr"]
    level = {}
    for attack, rows in evidence[evidence["status"] == OK].groupby("attack"):
        known = [row for row in rows.index if row in originals and row in found]
        if known and pairs:
            reconstructed, truth = (torch.stack([images[row] for row in known]) for images in (found, originals))
            level[str(attack)] = chance_level(metrics.psnr, reconstructed, truth, pairs)
    return Guess(source, float(nearest.median()), float((nearest >= RECOGNISABLE_DB).mean()), level)


class _Pictures:
    """Pictures to embed, each content once."""

    def __init__(self) -> None:
        self._pictures: list[Image.Image] = []
        self._numbers: dict[bytes, int] = {}

    def add(self, image: Tensor) -> int:
        """The number of ``image`` [C,H,W] in [0, 1]."""
        picture = to_picture(image)
        number = self._numbers.setdefault(picture.tobytes(), len(self._pictures))
        if number == len(self._pictures):
            self._pictures.append(picture)
        return number

    def encoded(self) -> tuple[list[str], bool]:
        """WebP files as base64 by number, and whether they are without losses."""
        files = [_webp(picture, LOSSLESS) for picture in self._pictures]
        exact = sum(map(len, files)) <= MOST_BYTES
        if not exact:
            files = [_webp(picture, LOSSY) for picture in self._pictures]
        return [base64.b64encode(file).decode() for file in files], exact


def _webp(picture: Image.Image, how: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", **how)
    return buffer.getvalue()
