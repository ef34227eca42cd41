import shutil
import subprocess
import sys
from pathlib import Path

import experiments
from experiments.package_data import data_file


def test_data_files_lie_beside_the_code() -> None:
    assert data_file("templates/report.html.j2").is_file()
    assert data_file("no-such-file") == Path(experiments.__file__).parent / "no-such-file"


def test_a_bundle_without_data_files_finds_the_installed_ones(tmp_path: Path) -> None:
    source = Path(experiments.__file__).parent
    (tmp_path / "experiments").mkdir()
    for name in ("__init__.py", "package_data.py"):
        shutil.copy(source / name, tmp_path / "experiments")
    code = "import experiments.package_data as p; print(p.__file__); print(p.data_file('templates'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    code_file, templates = done.stdout.splitlines()
    assert Path(code_file).parent == tmp_path / "experiments"
    assert (Path(templates) / "report.html.j2").is_file()
