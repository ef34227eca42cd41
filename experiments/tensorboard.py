"""A run in TensorBoard: scalars by round, and originals beside reconstructions."""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torchvision.utils import make_grid

from experiments.callbacks import Callback, Row
from experiments.leakage import COLUMNS, typed
from experiments.loaded_run import Images
from experiments.summary import summarise
from fl_sim.config import SettingsError


class TensorBoard(Callback):
    """Writes event files into ``folder``, which is made with the first of them.

    Scalars by round: every figure of the rounds table as ``rounds/train_loss`` and so on; of each attack, once the last
    one on the round has ended, ``median_psnr/NAME`` and ``best_psnr/NAME`` in dB and ``share_recognisable/NAME``.
    Images ``NAME/client-0003`` by round: on the left originals, on the right reconstructions.

    Raises:
        SettingsError: if the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingsError(
                "TensorBoard: the package tensorboard is not installed; allowed: pip install 'fl-sim[tensorboard]'"
            ) from error
        self._make_writer: Any = SummaryWriter

    @cached_property
    def _writer(self) -> Any:
        return self._make_writer(str(self._folder))

    def on_round(self, row: Row) -> None:
        """Write its figures."""
        for name, value in row.items():
            if isinstance(value, float):
                self._scalar(f"rounds/{name}", value, row["round"])
        self._writer.flush()

    def on_attack(self, rows: list[Row], images: Images) -> None:
        """Write the images."""
        if images.originals is None:
            return
        client, number = rows[0]["client"], rows[0]["round"]
        whose = "sum" if client < 0 else f"client-{client:04d}"
        for attack, found in images.reconstructions.items():
            one = len(found) < len(images.originals)
            originals = images.originals.mean(dim=0, keepdim=True) if one else images.originals
            pairs = torch.stack([originals, found], dim=1).flatten(0, 1)
            self._writer.add_image(f"{attack}/{whose}", make_grid(pairs, nrow=2), number)
        self._writer.flush()

    def on_round_attacked(self, rows: list[Row]) -> None:
        """Write how much leaked."""
        for summary in summarise(typed(pd.DataFrame(rows, columns=list(COLUMNS)))):
            for name in ("median_psnr", "best_psnr", "share_recognisable"):
                self._scalar(f"{name}/{summary.attack}", getattr(summary, name), rows[0]["round"])
        self._writer.flush()

    def _scalar(self, tag: str, value: float, server_round: int) -> None:
        if math.isfinite(value):
            self._writer.add_scalar(tag, value, server_round)
