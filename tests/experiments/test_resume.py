"""A run that was broken off and resumed must leave what a run leaves that was left alone, bit for bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from flwr.app import Context, Message
from rich.console import Console
from typer.testing import CliRunner

from attacks.workers import Job, Result
from experiments.cli import app
from experiments.launch import launch, resume
from experiments.run_directory import RunDirectory
from fl_sim.local_grid import Client
from fl_sim.wire import CONFIG, ROUND
from tests.experiments.in_process import PoolInThisProcess, federation_in_process, without_ray
from tests.kill_and_resume import differences

GUESSING = "attack.name=tests.attacks.toy_attacks:Guess"
TINY = (
    "client.seed=11",
    "federation.clients=3",
    "federation.clients_per_round=2",
    "federation.rounds=3",
    "model.checkpoint=none",
    "model.block_out_channels=[8]",
    "model.norm_num_groups=4",
    "utility.every=2",
    "utility.samples=0",
    GUESSING,
)
WEIGHTS = ("client.update=weights", "client.lr=0.01")
ALL = ("federation.clients_per_round=3",)
RUNS = {
    "FedSGD with momentum": ('strategy.args={inner="FedAvg",optimizer="sgd",lr=0.1,optimizer_args={momentum=0.9}}',),
    "FedSGD with Adam": ('strategy.args={optimizer="adam",lr=0.01}', "strategy.ema=0.5"),
    "FedAdam": (*WEIGHTS, "strategy.name=FedAdam"),
    "FedAvgM": (*WEIGHTS, "strategy.name=FedAvgM", "strategy.args.server_momentum=0.9"),
    "gossip": (*ALL, "federation.topology=ring", "strategy.name=Gossip", "federation.curious_peers=[0, 1]"),
    "attacks afterwards": ("attack.when=after", "metrics.names=gmsd"),
    "LoRA": (*WEIGHTS, "client.lora.rank=2", "strategy.name=FedAvg"),
    "no capture stays": ("attack.capture=none", "attack.max_disk=2MB", "attack.every=2"),
    "no room for captures": ("attack.max_disk=130kB",),
    "nobody attacks": ("attack.name=none", 'strategy.args={optimizer="adam",lr=0.01}'),
}


class Killed(BaseException):
    """What ends the process here, as a kill does: nothing is written after it."""


def start(out: Path, *settings: str) -> RunDirectory:
    with without_ray():
        launch("demo-16", [*TINY, *settings], out, Console(quiet=True))
    return RunDirectory(out)


def go_on(directory: RunDirectory) -> None:
    with without_ray():
        resume(directory.path, Console(quiet=True))


def killed_in(out: Path, settings: tuple[str, ...], at: Callable[[], object]) -> RunDirectory:
    """A run that ended when it came to what ``at`` patches."""
    with without_ray(), at(), pytest.raises(Killed):
        launch("demo-16", [*TINY, *settings], out, Console(quiet=True))
    return RunDirectory(out)


def training(round_number: int, client: int) -> Callable[[], object]:
    """Killed while that client trains."""

    def run(server_app: object, client_app: Client, settings: object, *_: object, **__: object) -> None:
        def dying(message: Message, context: Context) -> Message:
            config = message.content.config_records.get(CONFIG, {})
            if (config.get(ROUND), context.node_config["partition-id"]) == (round_number, client):
                raise Killed
            return client_app(message, context)

        federation_in_process(server_app, dying, settings)

    return lambda: patch("experiments.launch.run_federation", run)


def attacking(number: int) -> Callable[[], object]:
    """Killed in the attack of that number, which had a result, but no row."""

    class Pool(PoolInThisProcess):
        done = 0

        def submit(self, job: Job, on_result: Callable[[Result], None]) -> None:
            Pool.done += 1
            if Pool.done == number:
                raise Killed
            super().submit(job, on_result)

    return lambda: patch("experiments.launch.AttackPool", Pool)


def recording(round_number: int) -> Callable[[], object]:
    """Killed when the tables had the round, but its state was not yet kept."""

    def die(_: object, finished: object) -> None:
        if finished.round == round_number:
            raise Killed

    return lambda: patch("experiments.progress.Progress.round_done", die)


def reporting() -> object:
    return patch("experiments.launch.build_report", side_effect=Killed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunDirectory]:
    made: dict[str, RunDirectory] = {}

    def run(name: str) -> RunDirectory:
        if name not in made:
            made[name] = start(tmp_path_factory.mktemp("alone") / "run", *RUNS[name])
        return made[name]

    return run


@pytest.mark.parametrize("name", RUNS)
def test_whatever_the_strategy_remembers_it_goes_on_with_it(
    name: str, undisturbed: Callable[[str], RunDirectory], tmp_path: Path
) -> None:
    directory = killed_in(tmp_path / "run", RUNS[name], recording(2))
    assert directory.state.is_file()
    go_on(directory)
    assert differences(directory, undisturbed(name)) == []


@pytest.mark.parametrize(
    "at",
    [training(1, 0), training(1, 2), training(2, 2), attacking(1), attacking(4), recording(1), reporting],
)
def test_wherever_it_was_broken_off(
    at: Callable[[], object], undisturbed: Callable[[str], RunDirectory], tmp_path: Path
) -> None:
    name = "FedSGD with momentum"
    directory = killed_in(tmp_path / "run", RUNS[name], at)
    go_on(directory)
    assert differences(directory, undisturbed(name)) == []


def test_it_may_be_broken_off_twice(undisturbed: Callable[[str], RunDirectory], tmp_path: Path) -> None:
    name = "FedSGD with Adam"
    directory = killed_in(tmp_path / "run", RUNS[name], recording(1))
    with recording(2)(), pytest.raises(Killed):
        go_on(directory)
    go_on(directory)
    assert differences(directory, undisturbed(name)) == []


def test_a_run_that_has_ended_is_left_alone(undisturbed: Callable[[str], RunDirectory]) -> None:
    directory = undisturbed("FedSGD with momentum")
    before = {path: path.stat().st_mtime_ns for path in directory.path.rglob("*")}
    result = CliRunner().invoke(app, ["run", "--resume", str(directory.path)])
    assert result.exit_code == 0, result.output
    assert "the run has ended" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in directory.path.rglob("*")} == before


@pytest.mark.parametrize("more", [["demo"], ["--set", "seed=1"], ["--out", "elsewhere"], ["--dry-run"]])
def test_settings_cannot_change_on_the_way(more: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", *more, "--resume", str(tmp_path)])
    assert result.exit_code == 2
    assert "the run goes on with the settings that it was started with" in result.stderr


def contents(directory: RunDirectory) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}


def assert_refused(directory: RunDirectory, *complaint: str) -> None:
    """In one line, and everything is as it was."""
    before = contents(directory)
    result = CliRunner().invoke(app, ["run", "--resume", str(directory.path)])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in complaint), result.stderr
    assert contents(directory) == before


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", "--resume", str(tmp_path)])
    assert (result.exit_code, result.stderr) == (2, f"fl-sim: {tmp_path}: not a run directory: it has no config.toml\n")


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return killed_in(tmp_path_factory.mktemp("broken") / "run", RUNS["FedSGD with momentum"], recording(2))


@pytest.fixture
def copied(broken_off: RunDirectory, tmp_path: Path) -> RunDirectory:
    return RunDirectory(shutil.copytree(broken_off.path, tmp_path / "run"))


def test_a_damaged_state_is_refused(copied: RunDirectory) -> None:
    whole = copied.state.read_bytes()
    copied.state.write_bytes(b"nothing of the kind")
    assert_refused(copied, f"{copied.state}: not the state of a run: ")
    copied.state.write_bytes(whole.replace(b"strategy", b"strategi"))
    assert_refused(copied, f"{copied.state}: not the state of a run: 'strategy'")


def test_other_settings_than_those_of_the_state_are_refused(copied: RunDirectory) -> None:
    text = copied.config.read_text()
    copied.config.write_text(text.replace("seed = 11", "seed = 12"))
    assert copied.config.read_text() != text
    assert_refused(copied, "of other settings than those in config.toml")


def test_captures_without_a_state_are_not_thrown_away(copied: RunDirectory) -> None:
    copied.state.unlink()
    assert_refused(copied, "there are captures, but no state.safetensors")


@pytest.mark.parametrize(
    "name", ["round-0001-client-0099.safetensors", "round-0001-client-0000-copy.safetensors", "notes.txt"]
)
def test_a_foreign_file_among_the_captures_is_named(name: str, copied: RunDirectory) -> None:
    shutil.copy(min(copied.captures.iterdir()), copied.captures / name)
    assert_refused(copied, name, "allowed: to move it elsewhere")


def test_a_capture_that_is_gone_before_its_attack_is_named(copied: RunDirectory) -> None:
    gone = min(copied.captures.iterdir())
    client = int(gone.stem[-4:])
    header, *rows = copied.leakage_csv.read_text().splitlines()
    kept = [row for row in rows if row.split(",")[1:3] != ["1", str(client)]]
    assert len(kept) == len(rows) - 1
    copied.leakage_csv.write_text("\n".join([header, *kept, ""]))
    gone.unlink()
    assert_refused(copied, f"{gone}: is gone, and was not attacked yet")


def test_a_run_that_ended_meanwhile_is_left_alone(copied: RunDirectory) -> None:
    """What is there counts once nobody else is in the folder."""
    copied.state.unlink()
    copied.model.write_bytes(b"the last one")
    before = contents(copied)
    assert CliRunner().invoke(app, ["run", "--resume", str(copied.path)]).exit_code == 0
    assert contents(copied) == before


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    directory = killed_in(tmp_path / "run", RUNS["nobody attacks"], recording(2))
    with directory.locked():
        result = CliRunner().invoke(app, ["run", "--resume", str(directory.path)])
    assert result.exit_code == 2
    assert "another run is in this folder" in result.stderr
