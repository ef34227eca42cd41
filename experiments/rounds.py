"""The rounds table: what the server knows of every round."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from attacks.observation import UpdateId
from experiments.summary import with_content
from fl_sim.config import SettingsError
from fl_sim.errors import explain
from fl_sim.files import write_atomically

_MEDIAN = "median_psnr_"


@dataclass(frozen=True)
class Round:
    """One round: the clients' mean training loss, who answered and who did not, and the new global weights.

    ``epsilon`` and ``delta`` are the largest differential privacy spent by any client so far, NaN if the defence proves
    none. ``epsilons`` follow ``clients_asked``, the clients asked so far, at the same delta; both are empty if none is
    proven. ``utility`` holds the figures of experiments/utility.py by column; it is empty in rounds without them.
    """

    round: int
    train_loss: float
    clients_seen: list[int]
    clients_missing: list[int]
    missing_because: list[str]
    client_device: str
    weights_sha256: str
    epsilon: float = math.nan
    delta: float = math.nan
    clients_asked: list[int] = field(default_factory=list)
    epsilons: list[float] = field(default_factory=list)
    utility: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The round's row of the table, without the medians of its attacks."""
        entry = asdict(self)
        return entry | entry.pop("utility")


def save_rounds(path: Path, rounds: list[Round], leakage: pd.DataFrame) -> None:
    """Replace the table by ``rounds``, with a column ``median_psnr_<attack>`` for every attack in ``leakage``.

    The median is over the round's originals with content, NaN where there is none. Before the first round has ended
    nothing is written.
    """
    if not rounds:
        return
    frame = pd.DataFrame([entry.row() for entry in rounds])
    write_atomically(path, _with_medians(frame, leakage).to_parquet)


def read_rounds(path: Path) -> pd.DataFrame:
    """The table, empty and without columns if there is none yet; SettingsError if it is damaged."""
    if not path.is_file():
        return pd.DataFrame()
    try:
        rounds = pd.read_parquet(path)
    except Exception as error:  # whatever pyarrow raises about a file that was cut off
        raise SettingsError(f"{path}: damaged: {explain(error)}") from error
    if "round" not in rounds:
        raise SettingsError(f"{path}: damaged: it has no column 'round'")
    return rounds


def save_medians(path: Path, leakage: pd.DataFrame) -> None:
    """Replace the medians in the table of a run that has ended by those of ``leakage``."""
    frame = pd.read_parquet(path)
    frame = frame.drop(columns=[column for column in frame if str(column).startswith(_MEDIAN)])
    write_atomically(path, _with_medians(frame, leakage).to_parquet)


def clients_behind(rounds: pd.DataFrame, update: UpdateId) -> list[int]:
    """The clients behind an update, of a sum those seen in its round; SettingsError if they were not recorded."""
    if update.client >= 0:
        return [update.client]
    for row in rounds.to_dict("records"):
        if row["round"] == update.round:
            return [int(seen) for seen in row["clients_seen"]]
    raise SettingsError(f"round {update.round} did not end, so that nobody wrote down whose updates were summed")


def _with_medians(frame: pd.DataFrame, leakage: pd.DataFrame) -> pd.DataFrame:
    medians = {
        f"{_MEDIAN}{attack}": frame["round"].map(with_content(rows).groupby("round")["psnr"].median())
        for attack, rows in leakage.groupby("attack", sort=True)
    }
    return frame.assign(**medians)
