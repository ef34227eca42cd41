"""Whole runs with clients and attacks in this process, and one as a person starts it, on Ray."""

import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import pytest
import torch
from flwr.app import Context, Error, Message
from typer.testing import CliRunner

from attacks.observation import Observation
from attacks.reconstruction_file import load_reconstruction
from attacks.workers import Job, Result
from experiments.checkpoint import load_checkpoint
from experiments.cli import app
from experiments.leakage import COLUMNS, TIME_COLUMNS, read_leakage
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from fl_sim.client_app import build_client_app
from fl_sim.settings_file import load_settings
from fl_sim.wire import CONFIG, ROUND
from tests.experiments.in_process import PoolInThisProcess, run_in_process
from tests.experiments.made_up_run import tiny_settings
from tests.fl_sim.federations import LocalGrid

GUESS, FAIL = "tests.attacks.toy_attacks:Guess", "tests.attacks.toy_attacks:Fail"
GUESSING = f"attack.name={GUESS}"
TINY = ("model.checkpoint=none", "model.block_out_channels=[8]", "model.norm_num_groups=4", "client.seed=3")

Run = Callable[..., RunDirectory]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a federation in this process; returns its directory."""
    return lambda folder, *overrides: run_in_process(tmp_path / folder, tiny_settings(*overrides))


def test_a_run_leaves_everything_in_its_directory(run: Run) -> None:
    directory = run("run", f"attack.name=['{GUESS}', '{FAIL}']", "client.batch_size=2", "attack.workers=2")
    files = {path.relative_to(directory.path).as_posix() for path in directory.path.rglob("*") if path.is_file()}
    who = [f"round-{number:04d}-client-{client:04d}" for number in (1, 2) for client in (0, 1)]
    assert files == {
        *("config.toml", "environment.json", "leakage.csv", "leakage.parquet", "rounds.parquet", "chance.parquet"),
        *("model.safetensors", "samples.png", "utility.json", "report.html"),
        *(f"captures/{name}.safetensors" for name in who),
        *(f"reconstructions/{name}-guess.safetensors" for name in who),
    }
    leakage = pd.read_parquet(directory.leakage_parquet)
    assert list(leakage.columns) == list(COLUMNS)
    assert len(leakage) == 2 * 2 * 2 * 2
    assert leakage["psnr"].notna().tolist() == (leakage["attack"] == "guess").tolist()
    assert set(leakage["status"]) == {"ok", "no luck today"}
    pd.testing.assert_frame_equal(leakage, read_leakage(directory.leakage_csv), check_exact=False)
    rounds = pd.read_parquet(directory.rounds)
    assert rounds["round"].tolist() == [1, 2]
    assert [list(clients) for clients in rounds["clients_seen"]] == [[0, 1], [0, 1]]
    assert rounds["weights_sha256"].nunique() == 2
    assert rounds["median_psnr_guess"].notna().all()
    assert load_checkpoint(directory.model).notes["rounds"] == 2
    assert load_reconstruction(directory.reconstruction(1, 0, "guess")).images.shape == (2, 3, 16, 16)


def test_the_same_settings_give_the_same_table_and_another_seed_another(run: Run) -> None:
    tables = [
        pd.read_parquet(run(folder, GUESSING, "attack.workers=2", seed).leakage_parquet).drop(columns=[*TIME_COLUMNS])
        for folder, seed in (("a", "seed=1"), ("b", "seed=1"), ("c", "seed=2"))
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert not tables[0]["mse"].equals(tables[2]["mse"])


@pytest.mark.parametrize(
    "training",
    [
        ("strategy.name=FedSGD",),
        ("strategy.name=FedMedian",),
        ("strategy.name=FedAvg", "client.update=weights", "client.local_steps=2"),
    ],
    ids=lambda training: training[0],
)  # the other strategies: tests/strategies/test_matrix.py
def test_an_attack_changes_no_bit_of_the_model(run: Run, training: tuple[str, ...]) -> None:
    digests = [
        pd.read_parquet(run(folder, attack, *training).rounds)["weights_sha256"].tolist()
        for folder, attack in (("with", GUESSING), ("without", "attack.name=none"))
    ]
    assert digests[0] == digests[1]


def test_without_an_attack_nothing_is_captured(run: Run) -> None:
    directory = run("run", "attack.name=none")
    assert not directory.captures.exists()
    assert len(read_leakage(directory.leakage_csv)) == 0
    assert directory.report.is_file()


def test_attacks_afterwards_wait_for_the_last_round_and_find_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, captures_by_then = PoolInThisProcess.submit, []

    def watched(pool: PoolInThisProcess, job: Job, on_result: Callable[[Result], None]) -> None:
        captures_by_then.append(len(list(job.capture.parent.iterdir())))
        submit(pool, job, on_result)

    monkeypatch.setattr(PoolInThisProcess, "submit", watched)
    tables = [
        pd.read_parquet(run(when, GUESSING, f"attack.when={when}").leakage_parquet)["mse"]
        for when in ("during", "after")
    ]
    assert captures_by_then == [1, 2, 3, 4, 4, 4, 4, 4]
    assert tables[0].equals(tables[1])


def test_the_server_is_told_noise_and_timesteps_in_the_known_threat_model_only(run: Run) -> None:
    for threat in ("known", "private"):
        directory = run(threat, GUESSING, f"threat={threat}")
        observation = Observation.load(directory.captures / "round-0002-client-0001.safetensors")
        leakage = read_leakage(directory.leakage_csv)
        truth = leakage[(leakage["round"] == 2) & (leakage["client"] == 1)]["timestep"].tolist()
        assert observation.threat == threat
        assert (observation.timesteps is None) == (threat == "private")
        assert observation.timesteps is None or observation.timesteps.tolist() == truth


def test_a_federation_that_fails_keeps_what_it_had(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    push = LocalGrid.push_messages

    def push_until_round_two(grid: LocalGrid, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        if any(config.get("server-round") == 2 for config in messages[0].content.config_records.values()):
            raise ConnectionError("the network is gone")
        return push(grid, messages)

    monkeypatch.setattr(LocalGrid, "push_messages", push_until_round_two)
    with pytest.raises(ConnectionError):
        run("run", GUESSING)
    directory = RunDirectory.open(tmp_path / "run")
    assert pd.read_parquet(directory.rounds)["round"].tolist() == [1]
    assert len(read_leakage(directory.leakage_csv)) == 2
    assert CliRunner().invoke(app, ["report", str(directory.path)]).exit_code == 0


def test_epochs_a_falling_learning_rate_and_an_average_on_the_server(run: Run) -> None:
    local = ("client.update=weights", "client.epochs=1", "client.batch_size=2", "client.lr_schedule=cosine")
    directory = run("run", GUESSING, "strategy.name=FedAvg", "strategy.ema=0.5", "data.limit=10", *local)
    leakage = read_leakage(directory.leakage_csv)
    assert set(leakage["status"]) == {"ok"}
    for client, rows in leakage[leakage["round"] == 2].groupby("client"):
        seen = Observation.load(directory.captures / f"round-0002-client-{client:04d}.safetensors").circumstances
        assert len(rows) == 2 * seen.local_steps
        assert set(rows["local_steps"]) == {seen.local_steps}
        assert seen.local_optimizer.lr == pytest.approx(0.005)
    final, average = (load_checkpoint(path).weights for path in (directory.model, directory.model_average))
    assert any(not torch.equal(value, average[name]) for name, value in final.items())


def test_what_the_strategy_asks_of_the_clients_is_in_the_captures(run: Run) -> None:
    prox = ("strategy.name=FedProx", "strategy.args.proximal_mu=0.5", "client.update=weights", "client.local_steps=2")
    directory = run("run", GUESSING, "federation.rounds=1", *prox)
    seen = Observation.load(directory.captures / "round-0001-client-0000.safetensors").circumstances
    assert seen.local_optimizer.proximal_mu == 0.5


def test_a_client_that_fails_in_one_round_is_named_in_table_and_report(tmp_path: Path) -> None:
    settings = tiny_settings(GUESSING)
    honest = build_client_app(settings)

    def client(message: Message, context: Context) -> Message:
        config = message.content.config_records.get(CONFIG, {})
        if config.get(ROUND) == 1 and context.node_config["partition-id"] == 1:
            return Message(Error(code=0, reason="its process died"), reply_to=message)
        return honest(message, context)

    directory = run_in_process(tmp_path / "run", settings, client)
    rounds = pd.read_parquet(directory.rounds)
    assert [list(clients) for clients in rounds["clients_seen"]] == [[0], [0, 1]]
    assert [list(clients) for clients in rounds["clients_missing"]] == [[1], []]
    assert [list(reasons) for reasons in rounds["missing_because"]] == [["its process died"], []]
    assert len(read_leakage(directory.leakage_csv)) == 3
    assert "Round 1, client 1" in directory.report.read_text()


def test_a_dry_run_prints_a_file_that_runs_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for override in (GUESSING, *TINY) for word in ("--set", override)]
    done = CliRunner().invoke(app, ["run", "demo-16", *words, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []
    assert "# one batch: training loss" in done.stdout
    assert "# takes about 2" in done.stdout
    printed = load_settings(ExperimentSettings, tomllib.loads(done.stdout))
    assert (printed.client.seed, printed.model.block_out_channels) == (3, (8,))


def test_a_dry_run_refuses_a_folder_that_the_run_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    done = CliRunner().invoke(app, ["run", "demo-16", "--dry-run", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "not empty" in done.stderr


@pytest.mark.ray
def test_a_person_runs_a_preset(tmp_path: Path) -> None:
    attack = (f"attack.name=['{GUESS}', '{FAIL}']", "attack.workers=1")
    overrides = (*TINY, *attack, "federation.clients=2", "seed=4")
    words = [word for override in overrides for word in ("--set", override)]
    result = CliRunner().invoke(
        app, ["run", "demo-16", *words, "--set", "federation.rounds=1", "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 0, result.output
    assert "round 1/1: training loss" in result.output
    assert "median PSNR" in result.output
    directory = RunDirectory.open(tmp_path / "run")
    leakage = pd.read_parquet(directory.leakage_parquet)
    assert leakage["status"].tolist() == ["RuntimeError: no luck today", "ok"] * 2
    assert (leakage["device"].dropna() == "cpu").all()
    assert directory.report.is_file()
