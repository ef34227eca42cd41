"""A round with two honest clients and one that lies, and the state of a run."""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp.strategy import FedAvg
from hypothesis import strategies as st

from attacks.observation import Observation, UpdateId
from experiments.run_state import RunState
from fl_sim.errors import explain
from fl_sim.local_grid import LocalGrid
from fl_sim.repeatable_grid import FederationError, RepeatableGrid
from fl_sim.wire import ARRAYS, CLIENT, METRICS, NUM_EXAMPLES, PARTITION, pack_reply
from strategies.fed_sgd import FedSGD
from strategies.honest_but_curious import HonestButCurious
from tests.strategies.stub_federation import GRADIENTS, WEIGHTS, initial_arrays

LIAR, CLIENTS = 2, 3
_NUMBERS = [-1, 0, 1, 3, 10**9, 2**62, 1e300, -1.5]
_FILLS = ["nan", "inf", "ones", "huge"]
_TYPES = ["float32", "float64", "float16", "int64", "int8", "complex64", "bool", "U4", "O", "V2"]


def lies() -> st.SearchStrategy[dict[str, Any]]:
    """What the third client does to its honest reply, as JSON."""
    return st.fixed_dictionaries(
        {"update": st.sampled_from(["gradient", "weights"])},
        optional={
            "fill": st.sampled_from(_FILLS),
            "type": st.sampled_from(_TYPES),
            "shape": st.sampled_from([[], [0], [1], [3, 3], [2, 2, 2, 2], [10**6]]),
            "name": st.sampled_from(["", "other", "../x", "a\x1b[31m", "conv_in.weight.x"]),
            "bytes": st.integers(0, 400),
            "drop": st.sampled_from([ARRAYS, METRICS, CLIENT, "array"]),
            "second": st.sampled_from([ARRAYS, METRICS]),
            "metric": st.sampled_from(["x", "", "\x1b[31m", NUM_EXAMPLES]),
            "record": st.sampled_from(["mine", "", CLIENT]),
            "num_examples": st.sampled_from([*_NUMBERS, "nan", "list"]),
            "loss": st.sampled_from([*_NUMBERS, "nan", "list"]),
            "partition": st.sampled_from([-1, 0, 1, 2**40, "x", "\x1b[31m", True]),
            "device": st.sampled_from(["", "\x1b[31m", "cpu\nx", 3, "c" * 10**5]),
            "labels": st.sampled_from([[], [-1], [10**12], ["x"]]),
        },
    )


class _Sink:
    """Notes what a curious server sees."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def observe(self, observation: Observation) -> None:
        self.seen.append(observation)

    def failed(self, update_id: UpdateId, reason: str) -> None:
        assert reason.isprintable()

    def drain(self) -> None: ...

    def close(self) -> None: ...


def aggregate(told: dict[str, Any]) -> None:
    """Two rounds; the global weights that come of them are finite."""
    recipe = GRADIENTS if told["update"] == "gradient" else WEIGHTS

    def client(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if message.metadata.message_type != "train":
            return Message(RecordDict({CLIENT: ConfigRecord({PARTITION: number})}), reply_to=message)
        sent = message.content.array_records[ARRAYS].to_torch_state_dict()
        made_up = {name: value if told["update"] == "weights" else 0.01 * value for name, value in sent.items()}
        reply = pack_reply(made_up, recipe.samples(1), 0.5, number, "cpu")
        return Message(_spoil(reply, told) if number == LIAR else reply, reply_to=message)

    grid = RepeatableGrid(LocalGrid(client, range(CLIENTS)), seed=0, clients=CLIENTS, timeout=10.0)
    inner = FedAvg(fraction_evaluate=0.0)
    server = HonestButCurious(FedSGD(inner, lr=0.1) if told["update"] == "gradient" else inner, sink=_Sink())
    try:
        result = server.start(grid, initial_arrays(), num_rounds=2, train_config=recipe.to_config())
    except AppExitException as error:  # as the backend has it
        raise FederationError(explain(error)) from error
    assert all(bool(value.isfinite().all()) for value in result.arrays.to_torch_state_dict().values())


def _spoil(reply: RecordDict, told: dict[str, Any]) -> RecordDict:
    arrays = reply.array_records[ARRAYS]
    name = next(iter(arrays))
    value = arrays[name].numpy()
    if "fill" in told:
        value = np.full(
            value.shape, {"nan": np.nan, "inf": np.inf, "ones": 1.0, "huge": 3e38}[told["fill"]], np.float32
        )
    if "shape" in told:
        value = np.asarray(np.resize(value, told["shape"]))
    if "type" in told:
        value = value.astype("U4").astype(object) if told["type"] == "O" else value.astype(told["type"])
    array = _array(np.asarray(value))
    if "bytes" in told:
        array = _raw(array.dtype, array.shape, array.data[: told["bytes"]])
    arrays[told.get("name", name)] = array
    metrics, facts = dict(reply.metric_records[METRICS]), dict(reply.config_records[CLIENT])
    for key, field in (("num_examples", NUM_EXAMPLES), ("loss", "train_loss")):
        if key in told:
            metrics[field] = {"nan": float("nan"), "list": [1, 2]}.get(told[key], told[key])
    metrics |= {told["metric"]: 1.0} if "metric" in told else {}
    facts |= {key: told[key] for key in ("partition", "device", "labels") if key in told}
    reply = RecordDict({METRICS: MetricRecord(metrics), CLIENT: ConfigRecord(facts)})
    reply[told.get("record", ARRAYS)] = arrays
    if told.get("drop") == "array":
        del arrays[next(iter(arrays))]
    elif "drop" in told:
        reply.pop(told["drop"], None)
    if "second" in told:
        reply["second"] = ArrayRecord({}) if told["second"] == ARRAYS else MetricRecord({"x": 1})
    return reply


def _array(value: np.ndarray) -> Array:
    """The array as a client may send it: also one that holds no numbers."""
    if value.dtype != object:
        return Array(value)
    from io import BytesIO

    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": value.shape})
    return _raw("object", value.shape, buffer.getvalue() + bytes(8 * value.size))


def _raw(dtype: str, shape: Sequence[int], data: bytes) -> Array:
    return Array(dtype=dtype, shape=tuple(shape), stype="numpy.ndarray", data=data)


def strategy() -> FedSGD:
    """A strategy that remembers something."""
    return FedSGD(FedAvg(fraction_evaluate=0.0), "adam", lr=0.01)


@cache
def state() -> bytes:
    """The file of a run's state after no round."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        RunState.of("run", initial_arrays(), strategy(), {"x": torch.ones(2)}, (), ()).save(path)
        return path.read_bytes()
