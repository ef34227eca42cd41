"""Strategies of somebody's own and Flower's, asked before a run whom they train."""

import logging
import random
import sys
import time
import tomllib

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from experiments.experiment import Experiment, prepare
from experiments.settings import ExperimentSettings
from fl_sim.config import SettingsError, resolve
from fl_sim.repeatable_grid import FederationError
from fl_sim.settings_file import dump_toml, load_settings
from strategies.layers import layers
from tests.experiments.in_process import run_in_process

BASE = {
    "client": {"seed": 11},
    "federation": {"clients": 4, "rounds": 2},
    "model": {"checkpoint": "none", "block_out_channels": [8], "norm_num_groups": 4},
    "attack": {"name": "none"},
    "utility": {"every": 0},
}
HERE = f"strategy.name={__name__}"


class PassesOn(FedAvg):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class SetsItself(FedAvg):
    def __init__(self, **kwargs):
        super().__init__(fraction_evaluate=0.0, **kwargs)


class TwoOfFour(FedAvg):
    """Has a sampling rule of its own, whatever it is given."""

    def __init__(self, **kwargs):
        super().__init__(**(kwargs | {"fraction_train": 0.5}))


class ForgetsArguments(FedAvg):
    def __init__(self, **kwargs):
        super().__init__()


class One(FedAvg):
    """Trains one client, whatever it is told."""

    def configure_train(self, *args):
        return list(super().configure_train(*args))[:1]


class Half(FedAvg):
    """Trains half of those that it is told to train."""

    def configure_train(self, *args):
        messages = list(super().configure_train(*args))
        return messages[: len(messages) // 2]


class Poisson(FedAvg):
    def configure_train(self, *args):
        return [message for message in super().configure_train(*args) if random.random() < 0.6]


class Queries(FedAvg):
    """Asks clients before it says whom it trains."""

    def configure_train(self, server_round, arrays, config, grid):
        grid.send_and_receive([Message(RecordDict(), node, MessageType.QUERY) for node in grid.get_node_ids()])
        return super().configure_train(server_round, arrays, config, grid)


class Nobody(FedAvg):
    def configure_train(self, *_):
        return []


class NobodyLater(FedAvg):
    def configure_train(self, server_round, *args):
        return super().configure_train(server_round, *args) if server_round == 1 else []


class Stranger(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        messages = list(super().configure_train(server_round, arrays, config, grid))
        messages[0].metadata.dst_node_id = 7
        return messages


class Breaks(FedAvg):
    def configure_train(self, *_):
        raise RuntimeError("out of\nluck")


class Exits(FedAvg):
    def configure_train(self, *_):
        sys.exit(0)


class NeverReturns(FedAvg):
    def configure_train(self, *_):
        while True:
            time.sleep(0.01)


class Waits(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        while len(list(grid.get_node_ids())) < 99:
            try:
                grid.get_node_ids()
            except Exception:
                time.sleep(0.001)


class OwnRounds(FedAvg):
    def start(self, *args, **kwargs):
        return super().start(*args, **kwargs)


class Noisy(FedAvg):
    """Draws from every global generator."""

    def configure_train(self, *args):
        random.random(), np.random.rand(), torch.rand(1)
        return super().configure_train(*args)


class EvaluatesWithMany(FedAvg):
    def __init__(self):
        super().__init__(min_evaluate_nodes=9)


def settings(*overrides: str) -> ExperimentSettings:
    return load_settings(ExperimentSettings, BASE, overrides)


def prepared(*overrides: str) -> Experiment:
    return prepare(settings(*overrides))


@pytest.mark.parametrize(
    ("overrides", "trained"),
    [
        ([], 4),
        (["federation.clients_per_round=2"], 2),
        (["federation.clients=7", "federation.clients_per_round=2"], 2),
        (["strategy.args.fraction_train=0.5"], 2),
        (["strategy.args.fraction_train=0.5", "federation.clients_per_round=2"], 2),
        (["strategy.args.fraction_train=0.1", "strategy.args.min_train_nodes=1"], 1),
        (["strategy.args.min_train_nodes=1"], 4),
        (["strategy.args.min_available_nodes=1", "federation.clients_per_round=3"], 3),
        (["strategy.name=FedMedian", "strategy.args.fraction_train=0.75"], 3),
        ([f"{HERE}:PassesOn", "federation.clients_per_round=2"], 2),
        ([f"{HERE}:PassesOn", "strategy.args.fraction_train=0.5"], 2),
        ([f"{HERE}:SetsItself", "federation.clients_per_round=3"], 3),
        ([f"{HERE}:TwoOfFour"], 2),
        ([f"{HERE}:One"], 1),
        ([f"{HERE}:One", "federation.clients_per_round=1"], 1),
        ([f"{HERE}:Half"], 2),
        ([f"{HERE}:Half", "federation.clients_per_round=2"], 2),
        ([f"{HERE}:Poisson", "federation.rounds=8"], None),
        ([f"{HERE}:Queries"], None),
        ([f"{HERE}:Queries", "federation.clients_per_round=2"], 2),
        (["federation.topology=ring", "strategy.name=Gossip"], 4),
    ],
)
def test_the_settings_say_how_many_clients_train_and_run_again(overrides, trained) -> None:
    experiment = prepared(*overrides)
    assert experiment.settings.federation.clients_per_round == trained
    again = prepare(load_settings(ExperimentSettings, tomllib.loads(dump_toml(experiment.settings))))
    assert again.settings == experiment.settings
    assert [vars(layer).get("fraction_train") for layer in layers(again.strategy)] == [
        vars(layer).get("fraction_train") for layer in layers(experiment.strategy)
    ]


@pytest.mark.parametrize("given", [["strategy.args.fraction_train=0.5"], [f"{HERE}:Half"], [f"{HERE}:One"]], ids=str)
def test_the_run_trains_as_many_as_its_records_say(tmp_path, given) -> None:
    directory = run_in_process(tmp_path / "run", settings(*given))
    said = tomllib.loads(directory.config.read_text())["federation"]["clients_per_round"]
    assert [len(clients) for clients in pd.read_parquet(directory.rounds)["clients_seen"]] == [said, said]


def test_a_round_in_which_nobody_is_asked_to_train_ends_the_run_in_one_line(tmp_path) -> None:
    with pytest.raises(FederationError, match=r"^round 2: the strategy asked no client to train$"):
        run_in_process(tmp_path / "run", settings(f"{HERE}:NobodyLater"))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["federation.clients=2", "strategy.args.min_available_nodes=3"],
            r"strategy\.args\.min_available_nodes = 3: FedAvg waits .*federation\.clients = 2$",
        ),
        (
            ["federation.clients=2", "strategy.args.min_train_nodes=3"],
            r"strategy\.args\.min_train_nodes = 3: .*federation\.clients = 2$",
        ),
        (["strategy.args.fraction_train=1.5"], r"strategy\.args\.fraction_train = 1\.5: .*federation\.clients = 4$"),
        (
            ["federation.clients=1", "strategy.args.fraction_train=1.0"],
            r"strategy\.args\.min_train_nodes = 2 \(by default\): .*federation\.clients = 1$",
        ),
        ([f"{HERE}:Waits"], r"strategy\.name = '.*Waits': waits for more clients .*federation\.clients = 4$"),
        ([f"{HERE}:EvaluatesWithMany"], r"strategy\.name = '.*EvaluatesWithMany': waits for more clients"),
        (["strategy.args.fraction_train=0.0"], r"strategy\.args\.fraction_train = 0\.0: trains nobody"),
        (
            [f"{HERE}:NeverReturns", "federation.timeout=1"],
            r"NeverReturns': has not said whom .*federation\.timeout = 1 s",
        ),
        ([f"{HERE}:Exits"], r"strategy\.name = '.*Exits': cannot configure round 1: SystemExit: 0$"),
        (["strategy.args.fraction_train=-1.0"], r"strategy\.args\.fraction_train = -1\.0: allowed: 0 to 1$"),
        (
            [f"{HERE}:TwoOfFour", "strategy.args.fraction_train=1.0"],
            r"strategy\.args\.fraction_train = 1\.0: has no effect, TwoOfFour sets 0\.5$",
        ),
        (
            [f"{HERE}:ForgetsArguments", "strategy.args.fraction_train=0.5"],
            r"strategy\.args\.fraction_train = 0\.5: has no effect, ForgetsArguments sets 1\.0$",
        ),
        ([f"{HERE}:Nobody"], r"strategy\.name = '.*Nobody': trains nobody"),
        ([f"{HERE}:Stranger"], r"strategy\.name = '.*Stranger': addresses node 7"),
        ([f"{HERE}:Breaks"], r"strategy\.name = '.*Breaks': cannot configure round 1: RuntimeError: out of luck$"),
        (
            ["strategy.args.min_train_nodes=-3", "strategy.args.fraction_train=-1.0"],
            r"min_train_nodes = -3: cannot config",
        ),
        (
            ["strategy.args.fraction_train=0.5", "federation.clients_per_round=3"],
            r"federation\.clients_per_round = 3: strategy\.args\.fraction_train = 0\.5 trains 2 of .*allowed: 2$",
        ),
        ([f"{HERE}:Half", "federation.clients_per_round=1"], r"clients_per_round = 1: .*trains 2 of .*allowed: 2$"),
        ([f"{HERE}:One", "federation.clients_per_round=3"], r"clients_per_round = 3: .*One' trains 1 of .*allowed: 1$"),
        (
            [f"{HERE}:Poisson", "federation.rounds=8", "federation.clients_per_round=2"],
            r"clients_per_round = 2: .* trains \d to \d of .*allowed: to leave it unset$",
        ),
        ([f"{HERE}:OwnRounds"], r"strategy\.name = '.*OwnRounds': OwnRounds has a start of its own"),
        (["strategy.name=strategies.honest_but_curious:HonestButCurious", "client.update=weights"], "start of its own"),
        (["strategy.args.arrayrecord_key=w"], r"strategy\.args\.arrayrecord_key = 'w': clients look for .*'arrays'"),
        (["strategy.args.configrecord_key=c"], r"strategy\.args\.configrecord_key = 'c': clients look for .*'config'"),
        (["strategy.args.weighted_by_key=w"], r"strategy\.args\.weighted_by_key = 'w': .*allowed: 'num-examples'"),
        (["strategy.args.fraction_evaluate=0.5"], r"strategy\.args\.fraction_evaluate = 0\.5: clients do not evaluate"),
        (["strategy.args.min_evaluate_nodes=3"], r"strategy\.args\.min_evaluate_nodes = 3: clients do not evaluate"),
        (
            ["strategy.name=FedMedian", "strategy.args.inner=FedAvg"],
            r"strategy\.args\.inner = 'FedAvg': .*strategy\.name = 'FedMedian'; give one",
        ),
        (["strategy.name=FedAvgg"], r"strategy\.name = 'FedAvgg': unknown; .*did you mean 'FedAvg'"),
        (["strategy.args.inner=FedAvgg"], r"strategy\.args\.inner = 'FedAvgg': unknown; .*did you mean 'FedAvg'"),
        (["strategy.args.inner=FedAdam"], r"strategy\.args\.inner = 'FedAdam': does not combine"),
        (["strategy.args.lr=fast"], r"strategy\.args\.lr = 'fast': "),
        (["strategy.args.lr=-1.0"], r"strategy\.args\.lr = -1\.0: .*Invalid learning rate"),
        (["strategy.args.optimizer=sdg"], r"strategy\.args\.optimizer = 'sdg': .*did you mean 'sgd'"),
        (
            ["strategy.name=FedTrimmedAvg", "strategy.args.beta=0.7"],
            r"strategy\.args = \{'beta': 0\.7\}: .*`beta` must",
        ),
        (["strategy.name=flwr.server.strategy:FedAvg"], r"strategy\.name = 'flwr\.server\.strategy:FedAvg': .*old API"),
        (["defence.name=top-k", "defence.args.fraction=2"], r"defence\.args\.fraction = 2: "),
    ],
)
def test_what_cannot_happen_is_said_before_the_run_in_words_of_settings(overrides, complaint) -> None:
    strategy = [] if any(override.startswith("strategy.name") for override in overrides) else ["strategy.name=FedSGD"]
    started = time.monotonic()
    with pytest.raises(SettingsError, match=complaint) as refusal:
        prepared(*strategy, *overrides)
    assert "\n" not in str(refusal.value)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["strategy.name=Krum", "strategy.args.num_malicious_nodes=2"],
            "num_malicious_nodes = 2: Krum needs at least 5",
        ),
        (
            ["strategy.name=Krum", "strategy.args.num_malicious_nodes=-1"],
            "num_malicious_nodes = -1: Krum needs at least 0",
        ),
        (
            ["strategy.name=MultiKrum", "strategy.args.num_nodes_to_select=5"],
            "num_nodes_to_select = 5: .*selects 1 to 4",
        ),
        (["strategy.name=MultiKrum", "strategy.args.num_nodes_to_select=0"], "num_nodes_to_select = 0: "),
        (
            ["strategy.name=Bulyan", "strategy.args.num_malicious_nodes=1"],
            "num_malicious_nodes = 1: .*at least 7 .*= 4",
        ),
        (
            ["strategy.name=Bulyan", "federation.clients_per_round=2"],
            r"num_malicious_nodes = 0 \(by default\): .*at least 3",
        ),
        (
            ["strategy.name=FedTrimmedAvg"],
            r"beta = 0\.2 \(by default\): .*trims nobody.*allowed: 0, or 0\.25 to below 0\.5",
        ),
        (
            [
                "client.update=weights",
                "strategy.name=DifferentialPrivacyServerSideFixedClipping",
                "strategy.args={noise_multiplier = 1.0, clipping_norm = 1.0, num_sampled_clients = 3}",
            ],
            r"num_sampled_clients = 3: .*federation\.clients_per_round = 4; allowed: 4",
        ),
    ],
)
def test_a_strategys_own_numbers_go_with_those_of_the_clients(overrides, complaint) -> None:
    with pytest.raises(SettingsError, match=rf"^strategy\.args\.{complaint}"):
        prepared(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy.name=Krum", "strategy.args.num_malicious_nodes=1"],
        ["strategy.name=MultiKrum", "strategy.args.num_nodes_to_select=4"],
        ["strategy.name=Bulyan", "federation.clients_per_round=3"],
        ["strategy.name=FedTrimmedAvg", "strategy.args.beta=0.25"],
        ["strategy.name=FedTrimmedAvg", "strategy.args.beta=0.0"],
        ["strategy.name=FedTrimmedAvg", "federation.clients_per_round=3", "strategy.args.beta=0.334"],
    ],
)
def test_those_that_do_are_taken(overrides) -> None:
    prepared(*overrides)


def test_the_noise_of_differential_privacy_is_set_for_the_clients_that_train() -> None:
    private = (
        "client.update=weights",
        "strategy.name=DifferentialPrivacyServerSideFixedClipping",
        "strategy.args={noise_multiplier = 1.0, clipping_norm = 1.0, fraction_train = 0.5}",
    )
    assert prepared(*private).strategy.num_sampled_clients == 2


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["federation.clients=1"], r"federation\.clients = 1: a peer needs another"),
        (["federation.topology=regular", "federation.degree=4"], r"federation\.degree = 4: .*allowed: 2 to 3$"),
        (["strategy.args.lrr=0.1"], r"strategy\.args\.lrr = 0\.1: unknown to Gossip; allowed: lr; did you mean 'lr'"),
        (
            ["strategy.args.fraction_train=0.5"],
            r"strategy\.args\.fraction_train = 0\.5: unknown to Gossip; allowed: lr",
        ),
        (["attack.name=residual", "federation.curious_peers=[]"], r"federation\.curious_peers = \[\]: nobody attacks"),
    ],
)
def test_gossip_is_refused_in_words_of_settings(overrides, complaint) -> None:
    with pytest.raises(SettingsError, match=f"^{complaint}"):
        prepared("federation.topology=ring", "strategy.name=Gossip", *overrides)


def random_states() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


def test_asking_leaves_no_trace(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    flower, taken = logging.getLogger("flwr"), settings(f"{HERE}:Noisy")
    monkeypatch.setattr(flower, "level", logging.INFO)
    monkeypatch.setattr(flower, "handlers", [caplog.handler])
    identity = {name: vars(TaskIdentity)[name] for name in ("_task_id", "_run_id", "_node_id")}
    states = random_states()
    experiment = prepare(taken)
    assert random_states() == states
    assert {name: vars(TaskIdentity)[name] for name in identity} == identity
    assert not [record for record in caplog.records if "Sampled" in record.getMessage()]
    assert not flower.disabled
    assert taken.federation.clients_per_round is None
    assert resolve(experiment.settings) == experiment.settings


# They pair the weights that they sent with the replies by position.
BY_POSITION = {
    "FedAvgM": "server_momentum = 0.9",
    "QFedAvg": "",
    "DifferentialPrivacyServerSideFixedClipping": "noise_multiplier = 0.1, clipping_norm = 1.0",
    "DifferentialPrivacyClientSideFixedClipping": "noise_multiplier = 0.1, clipping_norm = 1.0",
}


@pytest.mark.parametrize(("name", "arguments"), BY_POSITION.items(), ids=BY_POSITION)
def test_every_strategy_goes_on_from_a_checkpoint(tmp_path, name, arguments) -> None:
    overrides = ("model={checkpoint = 'bundled'}", "client.update=weights", f"strategy.name={name}")
    started = load_settings(
        ExperimentSettings,
        {key: BASE[key] for key in ("client", "attack", "utility")},
        (*overrides, f"strategy.args={{{arguments}}}", "federation.clients=2", "federation.rounds=2"),
    )
    rounds = pd.read_parquet(run_in_process(tmp_path / "run", started).rounds)
    assert rounds["clients_seen"].map(list).tolist() == [[0, 1], [0, 1]]
