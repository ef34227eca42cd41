"""A sweep of tiny runs, for the tests, and the command that runs it in this process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tomli_w
from typer.testing import CliRunner, Result

from experiments.cli import app
from tests.experiments.in_process import without_ray

BASE = {
    "data": {"partition": "photo"},
    "federation": {"clients": 2, "rounds": 1, "clients_per_round": 2},
    "model": {"checkpoint": "none", "block_out_channels": [8], "norm_num_groups": 4},
    "attack": {"name": "tests.attacks.toy_attacks:Guess"},
    "utility": {"samples": 0},
}
TWO = {"client_seed": 11, "grid": {"client": {"batch_size": [1, 2]}}}


def write(folder: Path, **tables: Any) -> Path:
    """The file of a sweep of these tables over a tiny base."""
    (folder / "base.toml").write_text(tomli_w.dumps(BASE))
    file = folder / "sweep.toml"
    file.write_text(tomli_w.dumps({"base": "base.toml", **tables}))
    return file


def sweep(folder: Path, *more: str, tables: Mapping[str, Any] = TWO) -> Result:
    """``fl-sim sweep`` of these tables into the folder ``out`` of ``folder``; its runs write empty reports."""
    words = ["sweep", str(write(folder, **tables)), "--out", str(folder / "out"), *more]
    with without_ray(), patch("experiments.launch.build_report", lambda path: (path / "report.html").touch()):
        return CliRunner().invoke(app, words)
