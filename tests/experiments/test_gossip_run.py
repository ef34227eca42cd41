"""A federation without a server, from settings to report."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from attacks.observation import Observation
from experiments.cli import app
from experiments.experiment import prepare
from experiments.leakage import read_leakage
from experiments.report import build_report
from experiments.run_directory import RunDirectory
from experiments.settings import load_run
from strategies.gossip import Gossip
from tests.experiments.in_process import run_in_process, without_ray
from tests.experiments.made_up_run import tiny_settings
from tests.experiments.report_page import Page

GUESSING = "attack.name=tests.attacks.toy_attacks:Guess"
FIVE = ("federation.clients=5", "federation.clients_per_round=5", "utility.every=0")
ON_A_RING = (*FIVE, "federation.topology=ring", "strategy.name=Gossip", GUESSING)


def test_curious_peers_fill_the_table_and_the_report(tmp_path: Path) -> None:
    directory = run_in_process(tmp_path / "run", tiny_settings(*ON_A_RING, "federation.curious_peers=[0, 2]"))
    leakage = read_leakage(directory.leakage_csv)
    who = list(zip(leakage["round"], leakage["client"], leakage["observer"], strict=True))
    # Between 0 and 2 sits 1, which both see.
    expected = [(1, "peer 0"), (1, "peer 2"), (3, "peer 2"), (4, "peer 0")]
    assert who == [(number, *pair) for number in (1, 2) for pair in expected]
    names = {f"round-000{r}-client-000{c}-peer-000{p[-1]}" for r, c, p in who}
    assert {file.stem for file in directory.captures.iterdir()} == names
    observation = Observation.load(directory.captures / "round-0002-client-0001-peer-0002.safetensors")
    assert observation.circumstances.observer == 2
    rounds = pd.read_parquet(directory.rounds)
    assert [list(clients) for clients in rounds["clients_seen"]] == [[0, 1, 2, 3, 4]] * 2
    page = Page(build_report(directory.path))
    assert "Curious peers reconstructed" in page.text
    assert [row["name"].partition(", seen by ")[2] for row in page.rows] == leakage["observer"].tolist()
    assert page.having("found", attack="guess") == len(who)


def test_nobody_curious_changes_no_bit(tmp_path: Path) -> None:
    digests = [
        pd.read_parquet(run_in_process(tmp_path / name, tiny_settings(*ON_A_RING, attack)).rounds)["weights_sha256"]
        for name, attack in (("with", GUESSING), ("without", "attack.name=none"))
    ]
    assert digests[0].equals(digests[1])


@pytest.mark.parametrize("topology", ["ring", "regular", "complete"])
def test_the_settings_make_the_graph(topology: str) -> None:
    more = ["federation.clients=6", "federation.clients_per_round=6", "strategy.args.lr=0.5"]
    more += ["federation.degree=3"] if topology == "regular" else []
    strategy = prepare(tiny_settings(*ON_A_RING, *more, f"federation.topology={topology}")).strategy
    assert isinstance(strategy, Gossip)
    assert len(strategy.neighbours(0)) == {"ring": 2, "regular": 3, "complete": 5}[topology]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (("strategy.name=FedAvg",), r"strategy\.name = 'FedAvg': .*no server; allowed: 'Gossip'"),
        (("federation.topology=server",), r"strategy\.name = 'Gossip': needs federation\.topology"),
        (("federation.topology=rign",), r"federation\.topology = 'rign': .*did you mean 'ring'"),
        (("federation.clients_per_round=2",), r"federation\.clients_per_round = 2: .*allowed: 5"),
        (("federation.curious_peers=[5]",), r"federation\.curious_peers: 5 is no peer; allowed: 0 to 4"),
        (("federation.topology=regular", "federation.degree=3"), r"federation\.degree = 3: no connected graph"),
        (("threat=known",), r"threat = 'known': .*no server to dictate"),
        (("strategy.args.seed=3",), r"strategy\.args\.seed: follows from other settings"),
        (
            ("client.update=weights", "strategy.args.lr=0.5"),
            r"strategy\.args\.lr = 0\.5: with client\.update = 'weights'",
        ),
        (("strategy.args.lr=much",), r"strategy\.args\.lr = 'much'"),
        (("defence.name=secure-aggregation",), r"defence\.name = 'secure-aggregation': .*no server to see a sum"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_starts(overrides: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        prepare(tiny_settings(*ON_A_RING, *overrides))
    assert "\n" not in str(refusal.value)


def test_a_person_runs_the_preset_in_small(tmp_path: Path) -> None:
    small = ("model.checkpoint=none", "federation.clients=3", "federation.rounds=2", "client.seed=1", GUESSING)
    words = [word for override in small for word in ("--set", override)]
    with without_ray():
        result = CliRunner().invoke(app, ["run", "gossip", *words, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    leakage = read_leakage(RunDirectory(tmp_path / "run").leakage_csv)
    assert leakage["client"].tolist() == [1, 2, 1, 2]
    assert set(leakage["observer"]) == {"peer 0"}
    assert set(leakage["status"]) == {"ok"}
    assert RunDirectory(tmp_path / "run").report.is_file()


def test_the_presets_step_along_gradients_goes_where_peers_send_weights() -> None:
    assert prepare(load_run("gossip", ["client.update=weights"])).settings.strategy.args == {}
