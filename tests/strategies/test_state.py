import logging
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedMedian

from strategies.errors import StrategyError
from strategies.fed_sgd import FedSGD
from strategies.state import decode, encode, restore_state, state_of


class Held:
    def __init__(self) -> None:
        self.seen = {3: [1.5, None]}


class Remembering(FedAvg):
    """Remembers one value of every kind."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.value, self.held, self.log = value, Held(), logging.getLogger("x")


def through_a_file(value: Any) -> Any:
    tensors: dict[str, torch.Tensor] = {}
    return decode(encode(value, "value", tensors), tensors)


@pytest.mark.parametrize(
    "value",
    [None, True, 7, 1e-300, "text", [1, (2, "a")], {"b": 1, "a": {2: None}}, {1, 2}, deque([1]), float("inf")],
)
def test_plain_values_come_back(value: Any) -> None:
    found = through_a_file({"key": value})["key"]
    assert (type(found), found) == (type(value), value)


def test_the_order_of_a_dict_comes_back() -> None:
    assert list(through_a_file({"z": 1, "a": 2})) == ["z", "a"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool", "float16"])
def test_arrays_come_back_to_the_bit(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    found = through_a_file([array, torch.from_numpy(array), array[1, 2]])
    assert [type(value) for value in found] == [np.ndarray, torch.Tensor, type(array[1, 2])]
    assert all(np.asarray(value).dtype == array.dtype for value in found)
    assert np.array_equal(found[0], array)
    assert np.array_equal(found[1].numpy(), array)
    assert found[2] == array[1, 2]


def test_flowers_records_come_back_in_their_order() -> None:
    arrays = ArrayRecord({"z": torch.ones(2), "a": torch.zeros(1, dtype=torch.int64)})
    found = through_a_file(arrays)
    assert list(found) == ["z", "a"]
    assert all(torch.equal(found.to_torch_state_dict()[n], v) for n, v in arrays.to_torch_state_dict().items())
    for record in (ConfigRecord({"a": 1, "b": "x"}), MetricRecord({"loss": 0.5})):
        assert through_a_file(record) == record


def test_a_strategy_and_what_it_wraps_remember_and_functions_stay_as_they_were_made() -> None:
    inner = Remembering([np.ones(2)])
    inner.held.seen[4] = [2.5]
    wrapped = FedSGD(inner, "adam")
    made = FedSGD(Remembering(), "adam")
    restore_state(made, *state_of(wrapped))
    assert np.array_equal(made.strategy.value[0], np.ones(2))
    assert made.strategy.held.seen == {3: [1.5, None], 4: [2.5]}
    assert made.strategy.log is logging.getLogger("x")


def test_the_state_is_a_copy() -> None:
    strategy = Remembering(np.zeros(2))
    _, tensors = state_of(strategy)
    strategy.value += 1
    assert torch.equal(tensors["strategy0.value"], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("value", [iter([1]), np.array([object()]), [b"bytes"]])
def test_what_cannot_be_written_down_is_named(value: Any) -> None:
    with pytest.raises(StrategyError, match=r"strategy0\.value.* cannot be written down"):
        state_of(Remembering(value))


def test_what_holds_itself_is_refused() -> None:
    held = Held()
    held.me = held
    with pytest.raises(StrategyError, match="holds itself"):
        state_of(Remembering(held))


def test_the_state_of_another_strategy_is_refused() -> None:
    with pytest.raises(StrategyError, match="not of FedSGD around FedMedian"):
        restore_state(FedSGD(FedMedian()), *state_of(FedSGD(FedAvg())))
