"""The federation: what honest clients and an honest server do."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.loaded_run import LoadedRun

# Flower reads this one when it is first imported, hence before any module of this package.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def load(directory: str | Path) -> "LoadedRun":
    """Read a run directory: ``.leakage`` and ``.rounds`` (pandas), ``.settings``, ``.images(round, client)``.

    A door for people into the evaluator's room, and the one place where this room names another: only the evaluator
    may see reconstructions and originals side by side, and it is imported when somebody calls this. Nothing in the
    federation, in strategies or in attacks may; tests/attacks/test_isolation.py holds both.

    Raises:
        SettingsError: if it is no run directory, or a file in it is damaged.
    """
    from experiments.loaded_run import LoadedRun

    return LoadedRun.read(Path(directory))
