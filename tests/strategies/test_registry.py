from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import pytest
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedTrimmedAvg,
    Krum,
    QFedAvg,
    Strategy,
)

from strategies.errors import StrategyError
from strategies.fed_sgd import FedSGD
from strategies.registry import available, build_strategy


class Mine(FedAvg):
    def __init__(self, weight: float, **flower: int) -> None:
        super().__init__(**flower)
        self.weight = weight


class PassesOn(Mine):
    def __init__(self, *args, rule: Literal["mean", "sum"] = "mean", **kwargs):
        super().__init__(*args, **kwargs)
        self.rule = rule


class SetsItself(FedAvg):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, fraction_evaluate=0.0, **kwargs)


class ByPosition(FedAvg):
    def __init__(self, first: int, second: int = 2, /, *, third: int = 3):
        super().__init__()
        self.numbers = first, second, third


class TakesAnything(Strategy):
    def __init__(self, **kwargs):
        self.given = kwargs

    configure_train = aggregate_train = configure_evaluate = aggregate_evaluate = summary = FedAvg.summary


class Halfway(Strategy):
    def summary(self) -> None: ...

    def configure_train(self, *_):
        return []


class Typed(FedAvg):
    def __init__(self, share: float | None = None, rule: Callable[[], int] | None = None, **kwargs):
        super().__init__(**kwargs)


class Breaks(FedAvg):
    def __init__(self, table: dict):
        super().__init__()
        self.value = table["missing"]


INSTANCE = FedAvg()
FUNCTION = functools.partial(FedAvg)


def own(name: str) -> str:
    return f"{__name__}:{name}"


def test_a_strategy_of_flowers_gets_its_arguments():
    strategy = build_strategy("Krum", {"num_malicious_nodes": 1, "fraction_evaluate": 0})
    assert type(strategy) is Krum
    assert strategy.num_malicious_nodes == 1


def test_a_strategy_by_its_dotted_path():
    strategy = build_strategy(own("Mine"), {"weight": 2.5})
    assert isinstance(strategy, Mine)
    assert strategy.weight == 2.5


def test_a_constructor_that_passes_arguments_on_takes_those_of_the_next_ones():
    strategy = build_strategy(own("PassesOn"), {"weight": 2.5, "rule": "sum", "min_train_nodes": 3})
    assert (strategy.weight, strategy.rule, strategy.min_train_nodes) == (2.5, "sum", 3)
    with pytest.raises(StrategyError, match=r"^fraction_trian = 0.5: unknown to .*did you mean 'fraction_train'"):
        build_strategy(own("PassesOn"), {"weight": 2.5, "fraction_trian": 0.5})


def test_a_constructor_that_passes_them_nowhere_known_takes_any():
    assert build_strategy(own("TakesAnything"), {"knob": 3}).given == {"knob": 3}


def test_arguments_by_position_by_name_and_by_default():
    assert build_strategy(own("ByPosition"), {"first": 7, "third": 9}).numbers == (7, 2, 9)
    with pytest.raises(StrategyError, match=r"^first is not set; ByPosition needs it"):
        build_strategy(own("ByPosition"))


def test_arguments_that_fed_sgd_does_not_know_are_the_inner_ones():
    strategy = build_strategy("FedSGD", {"inner": "FedTrimmedAvg", "lr": 0.3, "beta": 0.25, "min_train_nodes": 3})
    assert isinstance(strategy, FedSGD)
    assert type(strategy.strategy) is FedTrimmedAvg
    assert strategy.strategy.beta == 0.25
    assert strategy.strategy.min_train_nodes == 3


def test_fed_sgd_averages_unless_told():
    assert type(build_strategy("FedSGD").strategy) is FedAvg


def test_flowers_wrappers_work_alike():
    arguments = {"noise_multiplier": 0.5, "clipping_norm": 1.0, "num_sampled_clients": 2, "fraction_train": 0.5}
    strategy = build_strategy("DifferentialPrivacyServerSideFixedClipping", arguments)
    assert isinstance(strategy, DifferentialPrivacyServerSideFixedClipping)
    assert strategy.strategy.fraction_train == 0.5


def test_what_is_offered_counts_where_it_is_taken_and_nothing_else_is_given():
    offers = {"fraction_train": 0.5, "fraction_evaluate": 0.3, "client_learning_rate": 0.1, "num_sampled_clients": 2}
    assert build_strategy("FedAvg", {"fraction_train": 0.9}, offers).fraction_train == 0.9
    assert build_strategy("QFedAvg", {}, offers).client_learning_rate == 0.1
    assert build_strategy(own("SetsItself"), {}, offers).fraction_evaluate == 0.0
    assert build_strategy(own("SetsItself"), {}, offers).fraction_train == 0.5
    assert build_strategy(own("TakesAnything"), {}, offers).given == {}
    private = {"noise_multiplier": 0.5, "clipping_norm": 1.0}
    wrapper = build_strategy("DifferentialPrivacyServerSideFixedClipping", {**private, "inner": "QFedAvg"}, offers)
    assert isinstance(wrapper.strategy, QFedAvg)
    assert (wrapper.num_sampled_clients, wrapper.strategy.fraction_train) == (2, 0.5)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("FedAvgg", {}, "name = 'FedAvgg': unknown; .*did you mean 'FedAvg'"),
        ("Strategy", {}, "name = 'Strategy': unknown"),
        ("Result", {}, "name = 'Result': unknown"),
        ("no.such.module:X", {}, "name = 'no.such.module:X': cannot be imported"),
        ("strategies.fed_sgd:Nothing", {}, "name = .*cannot be imported"),
        ("pathlib:Path", {}, "name = 'pathlib:Path': is no strategy; needed is a subclass of flwr.serverapp.strategy"),
        ("os.path:join", {}, "name = .*: is no class, but of type function"),
        (own("FUNCTION"), {}, "name = .*: is no class, but of type partial"),
        (own("INSTANCE"), {}, "name = .*: is no class, but of type FedAvg"),
        (
            "flwr.server.strategy:FedAvg",
            {},
            r"name = .*Flower's old API \(flwr.server.strategy\); needed is a subclass of flwr.serverapp",
        ),
        (own("Halfway"), {}, "name = .*is abstract: it lacks aggregate_evaluate, aggregate_train, configure_evaluate"),
        ("FedAvg", {"fraction_trian": 0.5}, "fraction_trian = 0.5: unknown to FedAvg.*did you mean 'fraction_train'"),
        ("FedAvg", {"fraction_train": "half"}, "fraction_train = 'half': .*valid number"),
        ("FedAvg", {"train_metrics_aggr_fn": "mean"}, "train_metrics_aggr_fn = 'mean': .*callable"),
        ("Krum", {"num_malicious_nodes": 0.5}, "num_malicious_nodes = 0.5: .*valid integer"),
        (own("Typed"), {"share": "half"}, "share = 'half': .*valid number"),
        (own("Typed"), {"rule": "sum"}, "rule = 'sum': .*callable"),
        (own("PassesOn"), {"weight": 1.0, "rule": "median"}, "rule = 'median': .*'mean' or 'sum'"),
        (own("PassesOn"), {"weight": 1.0, "min_train_nodes": "two"}, "min_train_nodes = 'two': .*valid integer"),
        (own("SetsItself"), {"fraction_evaluate": 0.5}, "fraction_evaluate = 0.5: SetsItself sets it itself"),
        (own("Breaks"), {"table": {}}, "Breaks: KeyError: 'missing'"),
        ("FedTrimmedAvg", {"inner": "FedAvg"}, "inner = 'FedAvg': unknown to FedTrimmedAvg"),
        ("FedTrimmedAvg", {"beta": 0.7}, "FedTrimmedAvg: .*`beta` must be"),
        ("FedSGD", {"inner": "FedAdam"}, "strategy = 'FedAdam': does not combine gradients as they are"),
        ("FedSGD", {"inner": "FedProx"}, "strategy = 'FedProx': does not combine"),
        ("FedXgbBagging", {}, "name = 'FedXgbBagging': unknown"),
        ("FedSGD", {"inner": "FedAvrg"}, "inner = 'FedAvrg': .*did you mean 'FedAvg'"),
        ("FedSGD", {"inner": 3}, "inner = 3: must be the name"),
        (
            "DifferentialPrivacyServerSideFixedClipping",
            {"inner": "DifferentialPrivacyClientSideFixedClipping"},
            "inner = 'DifferentialPrivacyClientSideFixedClipping': wraps a strategy itself",
        ),
        ("FedSGD", {"lrr": 1.0}, "lrr = 1.0: unknown to FedSGD around FedAvg; .*did you mean 'lr'"),
        (
            "FedSGD",
            {"strategy": "FedAvg"},
            "strategy = 'FedAvg': FedSGD wraps the strategy whose name is given as inner",
        ),
        ("FedSGD", {"optimizer": "sdg"}, "optimizer = 'sdg'"),
        ("FedSGD", {"lr": "fast"}, "lr = 'fast'"),
        ("FedSGD", {"optimizer_args": {"lr": 0.9}}, "optimizer_args = {'lr': 0.9}: allowed: a table, without lr"),
        ("FedSGD", {"optimizer_args": 3}, "optimizer_args = 3"),
        ("FedSGD", {"lr": float("inf")}, "lr = inf: a step of torch.optim.SGD is not finite"),
        ("DifferentialPrivacyServerSideFixedClipping", {}, "noise_multiplier is not set"),
    ],
)
def test_mistakes_are_one_line_that_names_the_argument(name, args, message):
    with pytest.raises(StrategyError, match=f"^{message}") as caught:
        build_strategy(name, args)
    assert "\n" not in str(caught.value)


def test_the_names_are_those_of_concrete_strategies():
    assert {"FedSGD", "FedAvg", "FedAdam", "FedMedian", "Krum"} <= set(available())
    assert not {"Strategy", "Result"} & set(available())
