"""What a guess would have got in a run, metric by metric: the table beside the leakage table."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from attacks.observation import UpdateId
from experiments.chance import PublicPool, chance_level, nearest_public, public_pool
from experiments.leakage import OK, USER, match, observing_peer, read_leakage, shared_truth, summed_truth
from experiments.metrics import Metric
from experiments.metrics.registry import create_metrics
from experiments.rounds import clients_behind
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from experiments.summary import with_content
from fl_sim.config import SettingsError
from fl_sim.files import write_atomically
from fl_sim.wire import Recipe

COLUMNS = {
    "attack": "str",
    "metric": "str",
    "images": "int64",
    "reconstruction": "float64",
    "nearest_public": "float64",
    "chance": "float64",
    "public": "str",
}
"""``images``: how many were compared, those with content. The three figures are medians: of the reconstructions, of the
public image nearest to each original, and between reconstructions and images that are not their own. ``public``: which
images are public, or why there are none."""

MOST_ATTACKED = 1_000
"""At most so many images of an attack are compared, a spread over the run."""


def save_chance(directory: RunDirectory, settings: ExperimentSettings, recipe: Recipe) -> None:
    """Write ``chance.parquet``, if ``metrics.chance_pairs`` is not 0 and an attack has found something."""
    table = chance_table(directory, settings, recipe) if settings.metrics.chance_pairs else pd.DataFrame()
    if len(table):
        write_atomically(directory.chance, table.to_parquet)


def chance_table(directory: RunDirectory, settings: ExperimentSettings, recipe: Recipe) -> pd.DataFrame:
    """One row per attack and metric that can be computed here, of the COLUMNS.

    Raises:
        SettingsError: if the run has no leakage table, or its private images cannot be read.
    """
    leakage = with_content(read_leakage(directory.leakage_csv))
    metrics = {name: metric for name, metric in create_metrics(settings.metrics).items() if metric.missing() is None}
    pool, public = _public(settings, recipe.image_shape[0])
    rows: list[dict[str, object]] = []
    for attack, of_attack in leakage[leakage["status"] == OK].groupby("attack", sort=True):
        pairs = list(_pairs(directory, settings, recipe, of_attack))
        if pairs:
            truth, found = (torch.cat(images) for images in zip(*pairs, strict=True))
            rows += _rows(truth, found, pool, metrics, settings.metrics.chance_pairs, str(attack), public)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _rows(
    truth: Tensor,
    found: Tensor,
    pool: PublicPool | None,
    metrics: Mapping[str, Metric],
    pairs: int,
    attack: str,
    public: str,
) -> Iterator[dict[str, object]]:
    nearest = None
    if pool is not None:
        try:
            nearest = nearest_public(truth, pool.images)
        except ValueError as error:
            public = f"none: {error}"
    for name, metric in metrics.items():
        yield {
            "attack": attack,
            "metric": name,
            "images": len(truth),
            "reconstruction": _figure(_median, metric, truth, found),
            "nearest_public": float("nan") if nearest is None else _figure(_median, metric, truth, nearest),
            "chance": _figure(chance_level, metric, found, truth, pairs),
            "public": public,
        }


def _figure(compute: Callable[..., float], *given: Any) -> float:
    """The figure; NaN if the metric, which may be anybody's, raises: the run has a report to write."""
    try:
        return compute(*given)
    except Exception:
        return float("nan")


def _median(metric: Metric, truth: Tensor, found: Tensor) -> float:
    return float(metric(truth, found).nanquantile(0.5))


def _public(settings: ExperimentSettings, channels: int) -> tuple[PublicPool | None, str]:
    """The public images and what to call them; None, and why, where there are none."""
    try:
        pool = public_pool(settings, channels)
    except SettingsError as error:
        return None, f"none: {error}"
    return pool, "none: clients hold all bundled photographs" if pool is None else pool.name


def _pairs(
    directory: RunDirectory, settings: ExperimentSettings, recipe: Recipe, rows: pd.DataFrame
) -> Iterator[tuple[Tensor, Tensor]]:
    """Originals and reconstructions [N,C,H,W] of the rows, update by update; without what has no file any more.

    Of a long run a spread of updates.
    """
    rounds = pd.read_parquet(directory.rounds)
    updates = list(rows.groupby(["round", "client", "observer", "attack"]))
    count = max(1, len(updates) * min(len(rows), MOST_ATTACKED) // len(rows))
    for place in range(count):
        (number, client, observer, attack), alike = updates[place * len(updates) // count]
        update = UpdateId(int(str(number)), int(str(client)), observing_peer(str(observer)))
        reconstruction = directory.load_reconstruction(update, str(attack))
        if reconstruction is None:
            continue
        found = reconstruction.images
        truth = summed_truth(settings, recipe, clients_behind(rounds, update), update.round)
        of_user = bool((alike["image"] == USER).all())
        images = shared_truth(truth).images if of_user else truth.images
        if found.shape[1:] != images.shape[1:]:  # the file of another run
            continue
        places = [0] if of_user else alike["image"].astype("int64").tolist()[:MOST_ATTACKED]
        yield images[places], match(images, found)[places]
