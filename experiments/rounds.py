"""The rounds table: what the server knows of every round."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from experiments.summary import with_content
from fl_sim.files import write_atomically


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


def save_rounds(path: Path, rounds: list[Round], leakage: pd.DataFrame) -> None:
    """Replace the table by ``rounds``, with a column ``median_psnr_<attack>`` for every attack in ``leakage``.

    The median is over the round's originals with content, NaN where there is none. Before the first round has ended
    nothing is written.
    """
    if not rounds:
        return
    entries = [asdict(entry) for entry in rounds]
    frame = pd.DataFrame([entry | entry.pop("utility") for entry in entries])
    for attack, rows in leakage.groupby("attack", sort=True):
        medians = with_content(rows).groupby("round")["psnr"].median()
        frame[f"median_psnr_{attack}"] = frame["round"].map(medians)
    write_atomically(path, frame.to_parquet)
