"""A federation of somebody's own network: ``model.factory``."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from attacks.observation import Observation
from experiments.experiment import prepare
from experiments.leakage import read_leakage
from experiments.run_directory import RunDirectory
from fl_sim import network
from fl_sim.config import SettingsError
from tests.experiments.in_process import run_in_process, without_ray
from tests.experiments.made_up_run import tiny_settings
from tests.experiments.test_cli import GUESS, assert_refused, fl_sim
from tests.own_networks import HERE, config, trusting

FACTORY = f"{HERE}:build"
OWN = ("model.checkpoint=none", f"model.factory={FACTORY}", "model.factory_args.width=16")
EVALUATIONS = "attack.args.residual.max_evaluations=5"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDirectory]:
    settings = tiny_settings(*OWN, "attack.name=residual", EVALUATIONS)
    with trusting():
        yield run_in_process(tmp_path_factory.mktemp("runs") / "own", settings)


def test_a_run_trusts_the_factory_that_its_settings_name(run: RunDirectory) -> None:
    leakage = read_leakage(run.leakage_csv)
    assert set(leakage["status"]) == {"ok"}
    assert (leakage["timestep"] == leakage["timestep_recovered"]).all()
    assert run.report.is_file()
    [seen, *_] = (Observation.load(file).circumstances for file in sorted(run.captures.iterdir()))
    assert seen.model == config("build", width=16)


def test_a_class_conditional_network_of_ones_own_gets_the_images_labels(tmp_path: Path) -> None:
    own = ("model.checkpoint=none", f"model.factory={HERE}:labelled", "model.factory_args.num_class_embeds=4")
    settings = tiny_settings(*own, "model.factory_args.width=16", "attack.name=residual", EVALUATIONS)
    with trusting():
        leakage = read_leakage(run_in_process(tmp_path / "labelled", settings).leakage_csv)
    assert set(leakage["status"]) == {"ok"}
    assert leakage["label"].nunique() > 1
    assert (leakage["label"] == leakage["label_recovered"]).all()
    assert (leakage["timestep"] == leakage["timestep_recovered"]).all()


def test_what_a_run_wrote_is_shown_without_running_the_factory(run: RunDirectory) -> None:
    with trusting():
        result = fl_sim("report", run.path)
        assert result.exit_code == 0, result.output
        assert network.trusted() == []


def test_its_captures_are_attacked_where_the_factory_is_trusted(run: RunDirectory, tmp_path: Path) -> None:
    capture = sorted(run.captures.iterdir())[0]
    command = ("attack", capture, "--attack", "residual", "--set", "max_evaluations=1", "--out", tmp_path / "out")
    with trusting():
        wrong = fl_sim(*command, "--trust", "nobody")
        assert_refused(wrong, "--trust 'nobody' is no factory; allowed: package.module:build")
        assert not (tmp_path / "out").exists()
        result = fl_sim(*command, "--trust", FACTORY, "--trust", "no.such:network")
        assert result.exit_code == 0, result.output
        assert (tmp_path / "out" / "reconstruction.png").is_file()


def test_all_that_its_run_captured_likewise(run: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    command = ("attack", tmp_path / "run", "--attack", GUESS)
    with trusting(), without_ray():
        assert_refused(fl_sim(*command), f"fl-sim attack --trust {FACTORY!r}")
        result = fl_sim(*command, "--trust", FACTORY)
    assert result.exit_code == 0, result.output
    assert set(read_leakage(tmp_path / "run" / "leakage.csv")["attack"]) == {"guess", "residual"}


def test_a_search_does_not_go_on_with_a_factory_that_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: RunDirectory
) -> None:
    code = tmp_path / "mine.py"
    code.write_text("from tests.own_networks import build\n")
    monkeypatch.syspath_prepend(tmp_path)
    observation = Observation.load(sorted(run.captures.iterdir())[0], trust=[FACTORY])
    facts = observation.circumstances.model_copy(update={"model": {"_factory": "mine:build", "width": 16}})
    object.__setattr__(observation, "circumstances", facts)
    observation.save(tmp_path / "capture")
    command = ("attack", tmp_path / "capture", "--attack", "residual", "--set", "max_evaluations=1")
    kept = ("--checkpoint", tmp_path / "search.log", "--trust", "mine:build")
    with trusting():
        first = fl_sim(*command, *kept, "--out", tmp_path / "first")
        assert first.exit_code == 0, first.output
        assert fl_sim(*command, *kept, "--resume", "--out", tmp_path / "same").exit_code == 0
        code.write_text("from tests.own_networks import build\n\n")
        assert_refused(fl_sim(*command, *kept, "--resume", "--out", tmp_path / "other"), "search.log", "network")


def test_a_capture_whose_factory_nobody_trusts_is_refused_and_nothing_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: RunDirectory
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef build(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    observation = Observation.load(sorted(run.captures.iterdir())[0])
    facts = observation.circumstances.model_copy(update={"model": {"_factory": "evil:build"}})
    object.__setattr__(observation, "circumstances", facts)
    observation.save(tmp_path / "capture")
    command = ("attack", tmp_path / "capture", "--attack", "residual", "--out", tmp_path / "out")
    assert_refused(fl_sim(*command, "--trust", FACTORY), "built by 'evil:build'", "fl-sim attack --trust 'evil:build'")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.factory=mine"], r"model\.factory = 'mine' is no factory; allowed: package\.module:build"),
        (["model.factory=no.such:build"], r"model\.factory = 'no\.such:build': factory 'no\.such:build' cannot be imp"),
        ([f"model.factory={FACTORY}", "model.factory_args.depth=3"], "unexpected keyword argument 'depth'"),
        ([f"model.factory={HERE}:for_grey_images"], r"data\.image_size = 16: .* predicts \[2, 1, 16, 16\]"),
        ([f"model.factory={FACTORY}", "data.channels=1"], r"fails on images of shape \[2, 1, 16, 16\]"),
        ([f"model.factory={HERE}:labelled", "model.factory_args.num_class_embeds=2"], "images have 4 classes; allowed"),
        ([f"model.factory={HERE}:counts"], "changes its buffer calls"),
        ([f"model.factory={FACTORY}", "model.factory_args.width=1979-05-27"], "width = .*cannot be sent to clients"),
        ([f"model.factory={FACTORY}", "model.factory_args.lora=1"], r"factory_args\.lora = 1: allowed: names"),
        ([f"model.factory={FACTORY}", "model.attention=true"], "its arguments describe the network"),
        ([f"model.factory={FACTORY}", "defence.name=unshared-time-mlp"], "has no layers called time_embedding"),
    ],
)
def test_a_factory_that_cannot_be_used_is_one_line(overrides: list[str], message: str) -> None:
    with trusting(), pytest.raises((SettingsError, ValueError), match=message) as caught:
        prepare(tiny_settings("model.checkpoint=none", *overrides))
    assert "\n" not in str(caught.value)


def test_entry_points_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.listing.plugins", lambda _: {"mine": FACTORY})
    assert f"model.factory, {FACTORY}" in fl_sim("list").output
