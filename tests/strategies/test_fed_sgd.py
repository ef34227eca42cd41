import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    QFedAvg,
)

from fl_sim.wire import pack_reply
from strategies.errors import StrategyError
from strategies.fed_sgd import FedSGD
from tests.strategies.stub_federation import GRADIENTS, NODES, StubGrid, run

MODEL = {"w": torch.tensor([1.0, 2.0]), "frozen": torch.tensor([5.0]), "steps": torch.tensor(7)}


def one_round(strategy: FedSGD, arrays: ArrayRecord, gradients: list[dict[str, list[float]]]) -> ArrayRecord:
    grid = StubGrid(lambda *_: RecordDict())
    messages = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    replies = [
        Message(pack_reply({n: torch.tensor(v) for n, v in gradient.items()}, 1, 0.0, 0, "cpu"), reply_to=message)
        for message, gradient in zip(messages, gradients, strict=True)
    ]
    stepped, _ = strategy.aggregate_train(1, replies)
    assert stepped is not None
    return stepped


def test_sgd_steps_with_the_mean_gradient_and_leaves_the_rest_alone():
    strategy = FedSGD(FedAvg(), lr=0.5)
    gradients = [{"w": [1.0, 0.0]}, {"w": [3.0, 0.0]}, {"w": [0.0, 0.0]}, {"w": [0.0, 4.0]}]
    stepped = one_round(strategy, ArrayRecord(MODEL), gradients).to_torch_state_dict()
    assert torch.equal(stepped["w"], torch.tensor([0.5, 1.5]))
    assert torch.equal(stepped["frozen"], MODEL["frozen"])
    assert torch.equal(stepped["steps"], MODEL["steps"])
    assert stepped["steps"].dtype == torch.int64
    assert list(stepped) == list(MODEL)


def test_the_inner_strategy_decides_how_gradients_combine():
    gradients = [{"w": [1.0, 1.0]}, {"w": [1.0, 1.0]}, {"w": [2.0, 2.0]}, {"w": [1e6, 1e6]}]
    stepped = one_round(FedSGD(FedMedian(), lr=1.0), ArrayRecord(MODEL), gradients).to_torch_state_dict()
    assert torch.equal(stepped["w"], MODEL["w"] - 1.5)


@pytest.mark.parametrize(
    ("name", "arguments", "reference"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}, torch.optim.SGD),
        ("adam", {}, torch.optim.Adam),
        ("AdamW", {}, torch.optim.AdamW),
    ],
)
def test_the_optimizer_keeps_its_state_across_rounds(name, arguments, reference):
    strategy = FedSGD(FedAvg(), name, lr=0.1, optimizer_args=arguments)
    parameter = torch.nn.Parameter(MODEL["w"].clone())
    optimizer = reference([parameter], lr=0.1, **arguments)
    arrays = ArrayRecord(MODEL)
    for gradient in ([1.0, -2.0], [0.5, 0.0], [-3.0, 1.0]):
        arrays = one_round(strategy, arrays, [{"w": gradient}] * len(NODES))
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    assert torch.equal(arrays.to_torch_state_dict()["w"], parameter.detach())


def test_the_step_starts_from_what_was_sent_not_from_the_last_step():
    strategy = FedSGD(FedAvg(), lr=1.0)
    one_round(strategy, ArrayRecord(MODEL), [{"w": [1.0, 1.0]}] * len(NODES))
    elsewhere = ArrayRecord({**MODEL, "w": torch.tensor([10.0, 10.0])})
    stepped = one_round(strategy, elsewhere, [{"w": [1.0, 1.0]}] * len(NODES))
    assert torch.equal(stepped.to_torch_state_dict()["w"], torch.tensor([9.0, 9.0]))


@pytest.mark.parametrize("gradient", [{"v": [1.0]}, {"w": [1.0]}, {"steps": [1.0]}])
def test_a_gradient_that_does_not_fit_is_refused(gradient):
    with pytest.raises(AggregationError, match="does not fit the model"):
        one_round(FedSGD(FedAvg()), ArrayRecord(MODEL), [gradient] * len(NODES))


def test_no_reply_no_step():
    assert FedSGD(FedAvg()).aggregate_train(1, []) == (None, None)


@pytest.mark.parametrize(
    "inner",
    [FedAvg(), FedMedian(), FedTrimmedAvg(), Krum(), MultiKrum(num_nodes_to_select=2), Bulyan()],
    ids=lambda inner: type(inner).__name__,
)
def test_whole_federations_are_repeatable(inner):
    once, _ = run(FedSGD(inner, "adam", lr=0.01), GRADIENTS, rounds=2)
    again, _ = run(FedSGD(inner, "adam", lr=0.01), GRADIENTS, rounds=2)
    assert once == again
    assert len(set(once)) == 3, "every round moves the weights"


@pytest.mark.parametrize(
    "inner",
    [
        FedAdam(),
        FedAvgM(),
        QFedAvg(client_learning_rate=0.1),
        DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 2),
        FedSGD(FedAvg()),
    ],
    ids=lambda inner: type(inner).__name__,
)
def test_strategies_that_subtract_what_was_sent_are_refused(inner):
    with pytest.raises(StrategyError, match=f"^strategy = '{type(inner).__name__}': does not combine"):
        FedSGD(inner)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "sdg"}, "^optimizer = 'sdg': .*did you mean 'sgd'"),
        ({"lr": -1.0}, r"^lr = -1\.0: .*Invalid learning rate"),
        ({"lr": "fast"}, "^lr = 'fast': "),
        (
            {"optimizer": "adam", "optimizer_args": {"momentum": 0.9}},
            r"^optimizer_args = \{'momentum': 0\.9\}: .*unexpected",
        ),
        ({"optimizer": "lbfgs"}, "^optimizer = 'LBFGS': .*closure"),
    ],
)
def test_unusable_optimizers_are_refused_at_once(arguments, message):
    with pytest.raises(StrategyError, match=message) as caught:
        FedSGD(FedAvg(), **arguments)
    assert "\n" not in str(caught.value)
