"""What a person runs: the command line, presets, leakage tables and reports; ``run`` does the same from Python.

Importing it imports nothing slow.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.callbacks import Callback
    from experiments.loaded_run import LoadedRun
    from experiments.settings import Source


def run(
    settings: "Source" = "demo",
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    callbacks: "Sequence[Callback]" = (),
    quiet: bool = False,
) -> "LoadedRun":
    """Run a federation and the attacks on it to the end, as ``fl-sim run`` does.

    Args:
        settings: a preset's name, a TOML file, settings by dotted key such as ``{"client.batch_size": 4}`` (those that
            are not named have their defaults), or ExperimentSettings.
        overrides: ``key=value`` as after ``--set``, applied in order.
        out: the run directory, new or empty; None: ``runs/NAME-TIME``.
        callbacks: are called while it goes on (experiments/callbacks.py).
        quiet: print nothing.

    Returns:
        What ``fl_sim.load`` gives of the run directory.

    Raises:
        UserError: in one line what is wrong, before anything is written.
        FederationError: if the federation fails.
    """
    from rich.console import Console

    from experiments.commands import output_folder
    from experiments.launch import launch
    from experiments.loaded_run import LoadedRun

    name = Path(settings).stem if isinstance(settings, str | Path) else "python"
    directory = output_folder(None if out is None else Path(out), name)
    launch(settings, overrides, directory, Console(quiet=quiet), callbacks=callbacks)
    return LoadedRun.read(directory)
