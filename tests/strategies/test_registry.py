import pytest
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, FedTrimmedAvg, Krum

from strategies.errors import StrategyError
from strategies.fed_sgd import FedSGD
from strategies.registry import available, build_strategy


class Mine(FedAvg):
    def __init__(self, weight: float, **flower: int) -> None:
        super().__init__(**flower)
        self.weight = weight


def test_a_strategy_of_flowers_gets_its_arguments():
    strategy = build_strategy("Krum", {"num_malicious_nodes": 1, "fraction_evaluate": 0})
    assert type(strategy) is Krum
    assert strategy.num_malicious_nodes == 1


def test_a_strategy_by_its_dotted_path():
    strategy = build_strategy(f"{__name__}:Mine", {"weight": 2.5})
    assert isinstance(strategy, Mine)
    assert strategy.weight == 2.5


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


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("FedAvgg", {}, "strategy.name 'FedAvgg' is unknown; .*did you mean 'FedAvg'"),
        ("Strategy", {}, "is unknown"),
        ("Result", {}, "is unknown"),
        ("no.such.module:X", {}, "cannot be imported"),
        ("strategies.fed_sgd:Nothing", {}, "cannot be imported"),
        ("pathlib:Path", {}, "no concrete subclass"),
        ("flwr.serverapp.strategy:Strategy", {}, "no concrete subclass"),
        ("FedAvg", {"fraction_trian": 0.5}, "strategy.args.fraction_trian = 0.5 .*did you mean 'fraction_train'"),
        ("FedAvg", {"fraction_train": "half"}, "strategy.args.fraction_train = 'half': .*valid number"),
        ("Krum", {"num_malicious_nodes": 0.5}, "strategy.args.num_malicious_nodes = 0.5: .*valid integer"),
        ("FedTrimmedAvg", {"inner": "FedAvg"}, "strategy.args.inner"),
        ("FedSGD", {"inner": "FedAdam"}, "FedAdam does not combine gradients .*: set client.update = 'weights'"),
        ("FedSGD", {"inner": "FedProx"}, "FedProx does not combine"),
        ("FedXgbBagging", {}, "is unknown"),
        ("FedSGD", {"inner": "FedAvrg"}, "did you mean 'FedAvg'"),
        ("FedSGD", {"lrr": 1.0}, "unknown to FedSGD around FedAvg; .*did you mean 'lr'"),
        ("FedSGD", {"strategy": "FedAvg"}, "strategy.args.strategy"),
        ("FedSGD", {"optimizer": "sdg"}, "sdg"),
        ("FedSGD", {"lr": "fast"}, "strategy.args.lr = 'fast'"),
        ("DifferentialPrivacyServerSideFixedClipping", {}, "missing"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(name, args, message):
    with pytest.raises(StrategyError, match=message) as caught:
        build_strategy(name, args)
    assert "\n" not in str(caught.value)


def test_the_names_are_those_of_concrete_strategies():
    assert {"FedSGD", "FedAvg", "FedAdam", "FedMedian", "Krum"} <= set(available())
    assert not {"Strategy", "Result"} & set(available())
