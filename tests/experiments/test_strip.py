from pathlib import Path

import pytest
from PIL import Image

from experiments.strip import build_strip
from fl_sim.config import SettingsError
from tests.experiments.made_up_run import make_up_run


def test_a_strip_shows_a_column_for_every_update_that_was_attacked(tmp_path: Path) -> None:
    run = make_up_run(tmp_path / "run")
    widths = []
    for most in (1, 2):
        with Image.open(build_strip(run.path, tmp_path / "strip.png", most)) as picture:
            widths.append(picture.width)
    assert widths[1] > widths[0]


def test_a_run_of_which_nothing_came_has_no_strip(tmp_path: Path) -> None:
    run = make_up_run(tmp_path / "run", "federation.clients=1", "federation.clients_per_round=1", "federation.rounds=1")
    with pytest.raises(SettingsError, match="no attack ended with an image to show"):
        build_strip(run.path, tmp_path / "strip.png")
    assert not (tmp_path / "strip.png").exists()
