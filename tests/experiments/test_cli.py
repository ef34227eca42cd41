import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from attacks.registry import ATTACKS
from experiments.cli import app
from tests.attacks.toy_attacks import tiny_observation
from tests.experiments.made_up_run import make_up_run
from tests.experiments.metrics.test_lpips import trained

GUESS = "tests.attacks.toy_attacks:Guess"


def fl_sim(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result: Result, *complaint: str) -> None:
    """One line on stderr that says what is wrong, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fl-sim: ")
    assert result.stderr.count("\n") == 1
    assert all(words in result.stderr for words in complaint), result.stderr


def test_the_help_teaches_without_waiting_for_torch() -> None:
    for command in ([], ["run"], ["attack"], ["train-prior"], ["report"], ["list"], ["metrics"]):
        assert fl_sim(*command, "--help").exit_code == 0
    assert "fl-sim run demo --set model.checkpoint=none" in fl_sim("run", "--help").output
    code = "import experiments.cli, sys; sys.exit(bool({'torch', 'ray', 'flwr'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("client.batchsize=2", ("client.batchsize", "did you mean 'client.batch_size'")),
        ("client.batch_size=many", ("client.batch_size = 'many'",)),
        ("client.batch_size", ("expected key=value",)),
        ("threat=secret", ("threat = 'secret'", "private")),
        ("attack.name=residul", ("attack.name = 'residul'", "did you mean 'residual'")),
        ("attack.workers=0", ("attack.workers = 0",)),
        ("strategy.name=FedAvgg", ("strategy.name = 'FedAvgg'", "did you mean 'FedAvg'")),
        ("data.name=folder", ("data.path is not set",)),
        ("federation.clients_per_round=9", ("federation.clients_per_round = 9", "at most")),
        ("client.\x1b[31mlr\n=1", (r"\x1b[31mlr",)),
        ("metrics.names=sim", ("metrics.names: metric 'sim'", "did you mean 'ssim'")),
        ("metrics.names=[]", ("metrics.names = []",)),
        ("metrics.lpips_weights=gone.pth", ("gone.pth: cannot be read",)),
        ("model.checkpoint=gone.safetensors", ("model.checkpoint = 'gone.safetensors'",)),
    ],
)
def test_a_wrong_setting_is_one_line_and_makes_no_folder(
    tmp_path: Path, override: str, complaint: tuple[str, ...]
) -> None:
    base = ["--set", f"attack.name={GUESS}", "--set", "model.checkpoint=none"]
    result = fl_sim("run", "demo-16", *base, "--set", override, "--out", tmp_path / "run")
    assert_refused(result, *complaint)
    assert not (tmp_path / "run").exists()


def missing_folder(folder: Path) -> None: ...


def empty_folder(folder: Path) -> None:
    folder.mkdir()


def broken_image(folder: Path) -> None:
    folder.mkdir()
    (folder / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")


@pytest.mark.parametrize(
    ("prepare", "complaint"),
    [(missing_folder, "no such folder"), (empty_folder, "no images"), (broken_image, "cat.png: not a readable image")],
)
def test_images_that_cannot_be_had_are_one_line(
    tmp_path: Path, prepare: Callable[[Path], None], complaint: str
) -> None:
    prepare(tmp_path / "photos")
    settings = (f"attack.name={GUESS}", "model.checkpoint=none", "data.name=folder", f"data.path={tmp_path / 'photos'}")
    overrides = [word for setting in settings for word in ("--set", setting)]
    assert_refused(fl_sim("run", "demo-16", *overrides, "--out", tmp_path / "run"), complaint)
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    capture = tmp_path / "update.safetensors"
    tiny_observation().save(capture)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    start = ("run", "demo-16", "--set", f"attack.name={GUESS}", "--set", "model.checkpoint=none")
    assert_refused(fl_sim(*start, "--out", tmp_path / "out"), "not empty")
    assert_refused(fl_sim("attack", capture, "--attack", GUESS, "--out", tmp_path / "out"), "not empty")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("kind", ["metric", "metrics"])
def test_one_kind_is_listed_alone(kind: str) -> None:
    output = fl_sim("list", kind).output
    assert "ms_ssim" in output
    assert "residual" not in output
    assert "demo-16" in fl_sim("list", "presets").output
    assert_refused(fl_sim("list", "metrix"), "KIND 'metrix': unknown", "did you mean 'metric'?")


def test_metrics_are_described_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    assert "larger is better: -1 to 1 (equal)" in fl_sim("metrics").output
    checked = fl_sim("metrics", "--check")
    assert checked.exit_code == 0
    assert "ssim: can be computed here\n" in checked.output
    missing = "VGG-16 weights are missing: put vgg16-397923af.pth in"
    assert f"lpips_vgg: cannot be computed here: torchvision's {missing} {tmp_path / 'checkpoints'}" in checked.output
    file = tmp_path / "squeeze.pth"
    torch.save(trained("squeeze").state_dict(), file)
    found = fl_sim("metrics", "--check", "--lpips-weights", file)
    assert "lpips_squeeze: can be computed here\n" in found.output
    file.write_bytes(b"no tensors")
    assert_refused(fl_sim("metrics", "--check", "--lpips-weights", file), "squeeze.pth: no file of tensors")
    assert_refused(fl_sim("metrics", "--check", "--lpips-weights", ""), "--lpips-weights", "must not be empty")


def test_everything_that_has_a_name_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ATTACKS, "built_in", {"guess": GUESS})
    output = fl_sim("list").output
    assert "Noise as image" in output
    named = ("guess", "FedSGD", "Krum", "bundled", "astronaut", "digits-16", "paper/cifar100-known-gidm")
    assert all(name in output for name in named)
    assert "Averaging" in output  # in Flower's own words
    assert "Ten runs." not in fl_sim("list", "sweeps").output
    assert "images of 16x16, grey; 0.7 million parameters" in fl_sim("list", "priors").output
    monkeypatch.setattr(ATTACKS, "built_in", {"guess": "no.such:Attack"})
    assert_refused(fl_sim("list"), "attack 'guess': cannot be imported")


def test_a_preset_or_file_that_is_not_there_is_one_line() -> None:
    assert_refused(fl_sim("run", "demmo"), "did you mean 'demo'")
    assert_refused(fl_sim("run", "nowhere.toml"), "nowhere.toml: cannot be read")


def test_reports_are_built_again_and_compared(tmp_path: Path) -> None:
    runs = [make_up_run(tmp_path / name).path for name in ("first", "second")]
    assert fl_sim("report", runs[0]).exit_code == 0
    assert (runs[0] / "report.html").is_file()
    assert fl_sim("report", *runs, "--out", tmp_path / "both.html").exit_code == 0
    assert (tmp_path / "both.html").is_file()
    assert_refused(fl_sim("report", tmp_path), "not a run directory")


def test_a_stopped_run_says_where_the_results_are(tmp_path: Path) -> None:
    code = (
        "import signal\n"
        "from experiments import cli, launch\n"
        "launch.launch = lambda *_: signal.raise_signal(signal.SIGTERM)\n"
        "cli.app(['run', 'demo', '--out', 'somewhere'])\n"
    )

    def last_words() -> list[str]:
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 143
        return done.stderr.splitlines()

    assert last_words() == ["fl-sim: stopped; nothing was computed"]
    make_up_run(tmp_path / "somewhere")
    assert last_words() == [
        "fl-sim: stopped; what was computed is in somewhere, and fl-sim report somewhere shows it; "
        "to go on: fl-sim run --resume somewhere"
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device is Linux's")
@pytest.mark.parametrize("words", [["list", "metrics"], ["list", "--help"]], ids=" ".join)
def test_a_full_standard_output_is_one_line(words: list[str]) -> None:
    program = Path(sys.executable).with_name("fl-sim")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([program, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "fl-sim: standard output: No space left on device\n"


def test_a_picture_is_of_one_run(tmp_path: Path) -> None:
    runs = [make_up_run(tmp_path / name).path for name in ("one", "two")]
    strip = tmp_path / "strip.png"
    assert_refused(fl_sim("report", *runs, "--picture", strip), "--picture: 2 run directories were given")
    assert not strip.exists()
    assert fl_sim("report", runs[0], "--picture", strip).exit_code == 0
    assert strip.exists()


def test_a_place_that_cannot_be_written_is_one_line_and_stays_as_it_was(tmp_path: Path) -> None:
    runs = [make_up_run(tmp_path / name).path for name in ("one", "two")]
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (tmp_path, file / "below.html"):
        assert_refused(fl_sim("report", *runs, "--out", place), str(tmp_path))
        assert_refused(fl_sim("report", runs[0], "--picture", place), str(tmp_path))
    assert file.read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_the_report_of_one_run_has_its_place(tmp_path: Path) -> None:
    run = make_up_run(tmp_path / "run").path
    assert_refused(fl_sim("report", run, "--out", tmp_path / "page.html"), "--out", "allowed with several runs")


def test_tensorboard_that_is_not_installed_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = fl_sim("run", "demo", "--tensorboard", "--out", tmp_path / "run")
    assert_refused(result, "tensorboard is not installed", "pip install 'fl-sim[tensorboard]'")
    assert not (tmp_path / "run").exists()
