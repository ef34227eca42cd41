"""Pipes given as files, callbacks that exit, paths that look like markup."""

import os
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from experiments.callbacks import Callback, Callbacks
from experiments.commands import bold_path
from experiments.metrics.lpips import read_weights
from fl_sim.config import SettingsError
from fl_sim.settings_file import read_toml


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.pth"
    os.mkfifo(pipe)
    for read in (read_toml, read_weights):
        with pytest.raises(SettingsError, match="no regular file"):
            read(pipe)


class Exits(Callback):
    """Would end the process."""


def test_a_callback_that_exits_is_dropped() -> None:
    said: list[str] = []
    callbacks = Callbacks([Exits()], said.append)
    callbacks.tell(lambda _: sys.exit(3))
    assert len(said) == 1
    assert "Exits failed" in said[0]
    assert not callbacks


def test_a_path_is_printed_as_it_is() -> None:
    output = StringIO()
    Console(file=output, emoji=False, width=200).print(bold_path(Path("a[red]/[/b]/:smile:")))
    assert output.getvalue() == "a[red]/[/b]/:smile:\n"
