"""The leakage table: one row per (round, client, image, attack) that compares a reconstruction with the original.

Nobody sends the original: the evaluator repeats the client's private draw from its seed.
"""

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.registry import ATTACKS
from experiments import metrics
from experiments.metrics import Metric
from experiments.metrics.registry import create_metrics
from experiments.settings import ExperimentSettings, MetricsSettings
from fl_sim.client_app import private_draw
from fl_sim.config import SettingsError
from fl_sim.defences import registry
from fl_sim.draws import concatenate
from fl_sim.errors import explain, printable
from fl_sim.files import naming, write_atomically
from fl_sim.wire import Recipe

logger = logging.getLogger(__name__)

OK = "ok"
USER = "user"
"""The image's name where one reconstructed image stands for all that the client trained on; others have numbers."""

COLUMNS = {
    "run": "str",
    "round": "int64",
    "client": "int64",
    "image": "int64",
    "attack": "str",
    "threat": "str",
    "timestep": "Int64",
    "timestep_recovered": "Int64",
    "label": "Int64",
    "label_recovered": "Int64",
    "mse": "float64",
    "psnr": "float64",
    "ssim": "float64",
    "lpips": "float64",
    "flat_psnr": "float64",
    "matching_loss": "float64",
    "evaluations": "Int64",
    "seconds": "float64",
    "device": "str",
    "status": "str",
    "update": "str",
    "batch_size": "int64",
    "local_steps": "int64",
    "defence": "str",
    "defence_args": "str",
    "defence_known": "bool",
    "observer": "str",
    "peak_memory": "float64",
}
"""The table's columns in order, with pandas' types; ``image`` is of strings in a table that has a USER."""

METRIC_COLUMNS = ("mse", "psnr", "ssim", "lpips")
"""Metrics that every table has a column for, empty where a run does not compute it. Others come after COLUMNS."""

ADDED_COLUMNS = ("flat_psnr", "peak_memory", "label", "label_recovered")
"""Columns that tables of earlier runs may lack; they are read as NA."""

TIME_COLUMNS = ("seconds", "peak_memory")
"""Columns that differ between two runs of the same settings: what the machine took."""

SORTED_BY = ["run", "round", "client", "image", "attack", "observer"]

SERVER = "server"
"""The observer in a federation that has a server; a curious peer is called ``peer 3``."""

_PEER = "peer "


@dataclass(frozen=True)
class Truth:
    """What a client trained on in one round: images float32 [N,C,H,W] in [0, 1] and, in diffusion, timesteps int64 [N].

    ``labels`` int64 [N] are what training was told of the images' classes; None where it uses no labels.
    """

    images: Tensor
    timesteps: Tensor | None = None
    labels: Tensor | None = None


def client_truth(settings: ExperimentSettings, recipe: Recipe, client: int, round_number: int) -> Truth:
    """Repeat the client's draw of that round; SettingsError if its images cannot be read."""
    draw = private_draw(settings, recipe, client, round_number)
    return Truth((draw.images + 1) / 2, draw.timesteps, draw.labels)


def summed_truth(settings: ExperimentSettings, recipe: Recipe, clients: Iterable[int], round_number: int) -> Truth:
    """The truth of all ``clients``, one after the other."""
    truths = [client_truth(settings, recipe, client, round_number) for client in clients]
    return Truth(
        torch.cat([truth.images for truth in truths]),
        concatenate(truth.timesteps for truth in truths),
        concatenate(truth.labels for truth in truths),
    )


def shared_truth(truth: Truth) -> Truth:
    """What one image that stands for all of them is compared with: their mean image [1,C,H,W].

    It has the label that they all have, -1 if they differ, and the timestep -1.
    """
    labels = truth.labels
    if labels is not None:
        labels = labels[:1] if bool((labels == labels[0]).all()) else torch.tensor([-1])
    return Truth(truth.images.mean(dim=0, keepdim=True), None, labels)


def observing_peer(observer: str) -> int | None:
    """The number of the curious peer with the name ``observer`` in the table, None for the server."""
    return None if observer == SERVER else int(observer.removeprefix(_PEER))


def match(truth: Tensor, reconstructed: Tensor) -> Tensor:
    """The reconstructed images [N,C,H,W], permuted to the true ones with the smallest total MSE.

    Raises:
        SettingsError: if they are not of the true ones' shape: a file of another run.
    """
    if reconstructed.shape != truth.shape:
        raise SettingsError(
            f"a reconstruction has images of shape {list(reconstructed.shape)}, the originals have "
            f"{list(truth.shape)}; allowed: the run's own files"
        )
    return reconstructed[metrics.assign(truth, reconstructed)]


def check_metrics(settings: MetricsSettings) -> None:
    """SettingsError if a metric of the settings cannot be used, or has the name of another column of the table."""
    for name in create_metrics(settings):
        if name in COLUMNS and name not in METRIC_COLUMNS:
            raise SettingsError(
                f"metrics.names: {name!r} is another column of the leakage table; allowed: another name"
            )


@dataclass(frozen=True)
class Evaluator:
    """Compares what an attack found with the truth; its rows belong to the run called ``run``."""

    run: str
    settings: ExperimentSettings
    recipe: Recipe

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """What images are compared by, by the column's name."""
        return create_metrics(self.settings.metrics)

    @property
    def further_columns(self) -> list[str]:
        """The columns of the table that come after COLUMNS."""
        return [name for name in self.metrics if name not in COLUMNS]

    def rows(
        self,
        round_number: int,
        client: int,
        attack: str,
        result: Reconstruction | str,
        observer: int | None = None,
        summed: Sequence[int] = (),
    ) -> list[dict[str, Any]]:
        """One row per image of the client in that round; ``result`` is the reason where the attack failed.

        Of an attack whose one image stands for all there is one row, against the mean of the client's images.
        ``observer`` is the curious peer that attacked, None for the server. ``summed`` are the clients behind a sum,
        for which ``client`` is -1; the images are then numbered through.
        """
        truth = summed_truth(self.settings, self.recipe, summed or [client], round_number)
        defence = registry.create(self.settings.defence.name, self.settings.defence.args)
        common = {
            "run": self.run,
            "round": round_number,
            "client": client,
            "attack": attack,
            "threat": self.settings.threat,
            "update": self.recipe.update,
            "batch_size": self.recipe.batch_size,
            "local_steps": len(truth.images) // (self.recipe.batch_size * max(1, len(summed))),
            "defence": self.settings.defence.name,
            "defence_args": defence.model_dump_json(),
            "defence_known": self.settings.attack.knows_defence,
            "observer": SERVER if observer is None else f"{_PEER}{observer}",
        }
        representative = self._finds_one_image(attack) if isinstance(result, str) else result.representative
        if representative:
            truth = shared_truth(truth)
        if isinstance(result, str):
            findings: list[dict[str, Any]] = [{"status": result}] * len(truth.images)
        else:
            findings = _findings(truth, result, self.metrics)
        originals = {
            "timestep": _known_or_none(truth.timesteps, len(truth.images)),
            "label": _known_or_none(truth.labels, len(truth.images)),
            "flat_psnr": metrics.flat_psnr(truth.images).tolist(),
        }
        rows = [
            common
            | {"image": USER if representative else image}
            | {name: values[image] for name, values in originals.items()}
            | finding
            for image, finding in enumerate(findings)
        ]
        return [{column: row.get(column) for column in (*COLUMNS, *self.further_columns)} for row in rows]

    def _finds_one_image(self, attack: str) -> bool:
        """Whether the run's attack of that name finds one image that stands for all."""
        chosen = [ATTACKS.find(name) for name in self.settings.attack.names]
        return any(found.representative for found in chosen if found.name == attack)


def _findings(truth: Truth, result: Reconstruction, chosen: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """For every true image: how close the reconstruction is, the timestep recovered, and the attack's own figures."""
    order = metrics.assign(truth.images, result.images)
    images = result.images[order]
    recovered = {
        "timestep_recovered": _known_or_none(result.timesteps[order], len(order)),
        "label_recovered": _known_or_none(None if result.labels is None else result.labels[order], len(order)),
    }
    values = {name: _or_nan(name, metric, truth.images, images) for name, metric in chosen.items()}
    attack = {
        "matching_loss": result.matching_loss,
        "evaluations": result.evaluations,
        "seconds": result.seconds,
        "device": result.device,
        "peak_memory": result.peak_memory,
        "status": OK,
    }
    return [
        {name: value[image].item() for name, value in values.items()}
        | {name: found[image] for name, found in recovered.items()}
        | attack
        for image in range(len(order))
    ]


def _known_or_none(values: Tensor | None, count: int) -> list[int | None]:
    """``count`` values, None for each that is -1; all None if there are no values."""
    return [None] * count if values is None else [value if value >= 0 else None for value in values.tolist()]


def _or_nan(name: str, metric: Metric, first: Tensor, second: Tensor) -> Tensor:
    try:
        return metric(first, second)
    except metrics.MetricUnavailableError:
        pass
    except Exception as error:  # whatever a plug-in raises: the attack's other figures are kept
        logger.warning("metric %s failed: %s", name, printable(explain(error)))
    return torch.full((len(first),), float("nan"))


class LeakageTable:
    """The table of a run in progress: every row reaches the CSV file at once, the parquet file when asked to.

    It begins with ``rows``, those of a run that goes on. After COLUMNS it has ``further`` ones, and those of ``rows``.
    """

    def __init__(
        self, csv_path: Path, parquet_path: Path, rows: Iterable[dict[str, Any]] = (), further: Iterable[str] = ()
    ) -> None:
        self._csv, self._parquet = csv_path, parquet_path
        self._rows = list(rows)
        self._columns = list(dict.fromkeys([*COLUMNS, *further, *(name for row in self._rows for name in row)]))
        self._lock = Lock()
        self._write_csv(map(self._values, self._rows))

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows, flushed to the CSV file before this returns."""
        with self._lock, naming(self._csv), self._csv.open("a", encoding="utf-8", newline="") as file:
            for row in rows:
                self._rows.append(row)
                file.write(_csv_line(self._values(row)))

    def frame(self) -> pd.DataFrame:
        """All rows so far, sorted."""
        with self._lock:
            return typed(pd.DataFrame(self._rows, columns=self._columns))

    def save(self) -> None:
        """Replace the parquet file by all rows so far."""
        frame = self.frame()
        write_atomically(self._parquet, frame.to_parquet)

    def close(self) -> None:
        """Save, and replace the CSV file by its rows in order, so that the same run leaves the same files."""
        self.save()
        self._write_csv(self.frame().itertuples(index=False))

    def _values(self, row: Mapping[str, Any]) -> list[Any]:
        return [row.get(column) for column in self._columns]

    def _write_csv(self, rows: Iterable[Iterable[Any]]) -> None:
        lines = [_csv_line(self._columns), *map(_csv_line, rows)]
        write_atomically(self._csv, lambda file: file.write_text("".join(lines), encoding="utf-8"))


def read_leakage(path: Path) -> pd.DataFrame:
    """The rows of a leakage.csv, sorted; a last line that a killed run left half written is dropped.

    ADDED_COLUMNS are NA if the run did not write them. Further columns of numbers, which are metrics, come last.

    Raises:
        SettingsError: if the file is no leakage table.
    """
    try:
        whole_lines = path.read_text(encoding="utf-8").rpartition("\n")[0] + "\n"
        text_columns = {name: "str" for name, kind in COLUMNS.items() if kind == "str"}
        frame = pd.read_csv(io.StringIO(whole_lines), dtype=text_columns, keep_default_na=False, na_values=[""])
        if lacking := [name for name in COLUMNS if name not in frame and name not in ADDED_COLUMNS]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        if foreign := [name for name in frame["attack"].astype(str).unique() if "/" in name or not name.isprintable()]:
            raise ValueError(f"an attack is called {foreign[0]!r}, which names no file in the folder")
        for observer in frame["observer"].unique():
            observing_peer(str(observer))
        further = [name for name in frame.select_dtypes("number") if name not in COLUMNS]
        return typed(frame.reindex(columns=[*COLUMNS, *further]))
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:  # of pandas, about what somebody else wrote
        raise SettingsError(f"{path}: not a leakage table: {' '.join(str(error).split())}") from error


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with every column in its type, sorted; a USER comes before numbered images."""
    kinds = (
        dict.fromkeys(frame.columns, "float64")
        | COLUMNS
        | ({"image": "str"} if bool((frame["image"] == USER).any()) else {})
    )
    return frame.astype(kinds).sort_values(SORTED_BY, key=_order, ignore_index=True)


def _order(column: pd.Series) -> pd.Series:
    """What a column is sorted by: images by their numbers, also where those are strings."""
    return column.replace(USER, "-1").astype("int64") if column.name == "image" else column


def _csv_line(values: Iterable[Any]) -> str:
    """One line of CSV; numbers in the shortest form that reads back unchanged, missing values empty."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([_csv_field(value) for value in values])
    return line.getvalue()


def _csv_field(value: Any) -> Any:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else value
