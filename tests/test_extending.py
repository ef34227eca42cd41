"""docs/extending.md: its files, written out and installed, are what it says of them. Its lines: tests/pages."""

import importlib
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attacks.attack import AttackError
from attacks.registry import ATTACKS, create
from experiments.cli import app
from fl_sim import registry
from tests.attacks.conftest import make_victim
from tests.pages.pages import pages

FILES = pages()["docs/extending.md"].files()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's files in a folder; what they install can be imported, but nothing else in the folder."""
    folder = tmp_path_factory.mktemp("package")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    site = folder / "site"
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(site)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        registry.plugins.cache_clear()
        yield folder
    registry.plugins.cache_clear()
    sys.modules.pop("smooth", None)


def test_the_page_shows_one_file_one_test_and_one_registration_in_few_lines() -> None:
    *attack, network, metric = FILES
    assert attack == ["smooth.py", "test_smooth.py", "pyproject.toml"]
    assert (network, metric) == ("unet.py", "brightness.py")
    assert len(FILES["smooth.py"].splitlines()) < 40
    lines = [line for name in attack for line in FILES[name].splitlines()]
    assert sum(bool(line.strip()) for line in lines) < 40


def test_its_registration_makes_it_known_by_name(package: Path) -> None:
    assert "smooth" in ATTACKS.names()
    assert Path(importlib.import_module("smooth").__file__ or "").parent == package / "site"
    assert ATTACKS.find("smooth") is ATTACKS.find("smooth:Smooth")
    assert "Cosine distance plus roughness" in CliRunner().invoke(app, ["list"]).output


def test_its_test_passes(package: Path) -> None:
    written = runpy.run_path(str(package / "test_smooth.py"))
    tests = [function for name, function in written.items() if name.startswith("test_")]
    assert len(tests) == 1
    for test in tests:
        test()


def test_it_is_what_the_page_says_of_it(package: Path) -> None:
    victim = make_victim(known=True)
    short, longer, again = (
        create("smooth", {"iterations": iterations}).reconstruct(victim.observation, seed=1)
        for iterations in (1, 50, 50)
    )
    assert longer.matching_loss < short.matching_loss / 10
    assert victim.psnr(longer.images) > victim.psnr(short.images) + 10
    assert longer.evaluations == 51
    assert longer.images.equal(again.images)
    with pytest.raises(AttackError, match="attack 'smooth' needs noise and timesteps"):
        create("smooth").reconstruct(make_victim().observation, seed=1)
    with pytest.raises(AttackError, match=r"attack 'smooth': iterations = 0"):
        create("smooth", {"iterations": 0})
