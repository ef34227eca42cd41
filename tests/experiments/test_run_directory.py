import json
from pathlib import Path

import pytest

from experiments.run_directory import RunDirectory, make_empty_folder
from experiments.settings import ExperimentSettings, load_run
from fl_sim.config import SettingsError
from fl_sim.files import write_atomically
from fl_sim.settings_file import load_settings
from tests.experiments.made_up_run import tiny_settings


def test_its_settings_run_again_unchanged(tmp_path: Path) -> None:
    settings = tiny_settings("attack.name=['residual', 'dlg']", "attack.args.residual.starts=3")
    directory = RunDirectory.create(tmp_path / "run", settings)
    assert load_settings(ExperimentSettings, directory.config) == settings
    assert load_run(str(directory.config)) == settings


def test_a_run_is_named_after_its_settings(tmp_path: Path) -> None:
    names = [
        RunDirectory.create(tmp_path / folder, tiny_settings(override)).run_name()
        for folder, override in (("a", "seed=1"), ("b", "seed=1"), ("c", "seed=2"))
    ]
    assert names[0] == names[1] != names[2]


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SettingsError, match="not empty"):
        RunDirectory.create(tmp_path, tiny_settings())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["leakage.csv", "reconstructions", "state.safetensors", "captures/one.safetensors"])
def test_a_link_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny_settings())
    (run.path / "elsewhere").mkdir()
    (run.path / "inside").symlink_to(run.path / "elsewhere")
    assert RunDirectory.open(run.path) == run
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).symlink_to(tmp_path / "precious")
    with pytest.raises(SettingsError, match=f"run/{name}: a link that leads out of its folder"):
        RunDirectory.open(run.path)


def test_a_link_in_the_place_of_a_file_that_is_being_written_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".report.html.unfinished").symlink_to(tmp_path / "precious")
    write_atomically(tmp_path / "report.html", lambda file: file.write_text("page"))
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "report.html").read_text() == "page"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(SettingsError, match="cannot be used as a folder"):
        make_empty_folder(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def test_the_environment_says_what_is_missing_and_why(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", tiny_settings())
    directory.write_environment({"lpips": "no weights"}, {"ssim": "window"})
    content = json.loads(directory.environment.read_text())
    assert content["not_computed"] == {"lpips": "no weights"}
    assert content["packages"]["torch"][0].isdigit()
