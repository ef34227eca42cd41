"""The wheel, built from a copy of what git would commit."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = {"fl_sim", "strategies", "attacks", "experiments"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the wheel, but for its metadata."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in (*PACKAGES, "tests", "docs"):
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_four_packages_and_nothing_else(files: set[str]) -> None:
    assert {PurePosixPath(name).parts[0] for name in files} == PACKAGES
    modules = {
        path.relative_to(REPOSITORY).as_posix() for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")
    }
    assert {name for name in files if name.endswith(".py")} == modules


def test_the_wheel_holds_presets_templates_and_the_trained_checkpoint(files: set[str]) -> None:
    data = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("presets", "templates", "checkpoints")
        for path in (REPOSITORY / "experiments" / folder).rglob("*")
        if path.is_file()
    }
    assert {f"experiments/{name}" for name in ("presets/demo.toml", "checkpoints/demo.safetensors")} < data
    assert {"experiments/checkpoints/demo-32.safetensors", "experiments/presets/paper/cifar100-known-gidm.toml"} < data
    assert {name for name in files if not name.endswith(".py")} == data
