"""Replies that cannot be used count as none, and the round goes on without them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fl_sim.local_grid import LocalGrid
from fl_sim.repeatable_grid import FederationError, RepeatableGrid
from fl_sim.reply_check import usual_names
from fl_sim.wire import ARRAYS, CLIENT, METRICS, NUM_EXAMPLES, PARTITION, TRAIN_LOSS, pack_reply
from tests.strategies.stub_federation import WEIGHTS, initial_arrays

NAME = "conv_in.weight"
OTHERS = "the reply has other parameters or metrics than most have"
Spoil = Callable[[RecordDict], object]


def federate(spoil: Spoil, liars: tuple[int, ...] = (2,)) -> RepeatableGrid:
    """One round of three clients, of which some spoil their replies."""

    def client(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if message.metadata.message_type != "train":
            return Message(RecordDict({CLIENT: ConfigRecord({PARTITION: number})}), reply_to=message)
        sent = message.content.array_records[ARRAYS].to_torch_state_dict()
        reply = pack_reply(sent, 1, 0.5, number, "cpu")
        if number in liars:
            spoil(reply)
        return Message(reply, reply_to=message)

    grid = RepeatableGrid(LocalGrid(client, range(3)), seed=0, clients=3, timeout=5.0)
    FedAvg(fraction_evaluate=0.0).start(
        grid, initial_arrays(), num_rounds=1, train_config=WEIGHTS.to_config(), timeout=5.0
    )
    return grid


def put(name: str, value: np.ndarray) -> Spoil:
    return lambda reply: reply.array_records[ARRAYS].__setitem__(name, Array(value))


def fact(record: str, key: str, value: object) -> Spoil:
    def spoil(reply: RecordDict) -> None:
        kind = ConfigRecord if record == CLIENT else MetricRecord
        reply[record] = kind({**reply[record], key: value})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda _: None, None),
        (lambda reply: reply.pop(ARRAYS), "the reply has 0 records of arrays; allowed: one"),
        (lambda reply: reply.pop(METRICS), "the reply has no number metrics.train_loss"),
        (lambda reply: reply.pop(CLIENT), "the reply has no name client.device"),
        (lambda reply: reply.array_records[ARRAYS].pop(NAME), OTHERS),
        (lambda reply: reply.__setitem__("mine", reply.pop(ARRAYS)), OTHERS),
        (fact(METRICS, "x", 1.0), OTHERS),
        (put(NAME, np.ones((8, 3, 3, 3), np.int8)), "the reply's conv_in.weight is of type int8, float32 was sent"),
        (put("other", np.ones(1)), "the reply's other is no parameter that was sent"),
        (put(NAME, np.ones(())), "the reply's conv_in.weight has shape [], [8, 3, 3, 3] was sent"),
        (put(NAME, np.full((8, 3, 3, 3), np.nan)), "the reply's conv_in.weight holds NaN or infinite values"),
        (put(NAME, np.full((8, 3, 3, 3), np.inf)), "the reply's conv_in.weight holds NaN or infinite values"),
        (put(NAME, np.full((8, 3, 3, 3), "x")), "the reply cannot be read: conv_in.weight is of type"),
        (fact(METRICS, NUM_EXAMPLES, 10**9), "the reply says that it trained on 1e+09 images, it was asked for 1"),
        (fact(METRICS, NUM_EXAMPLES, -1), "the reply says that it trained on -1 images"),
        (fact(METRICS, NUM_EXAMPLES, float("nan")), "the reply says that it trained on nan images"),
        (fact(METRICS, TRAIN_LOSS, [1.0]), "the reply has no number metrics.train_loss"),
        (fact(CLIENT, PARTITION, 0), "the reply says that it is of client 0"),
        (fact(CLIENT, "device", "\x1b[31m"), "the reply has no name client.device"),
    ],
)
def test_an_unusable_reply_counts_as_none(spoil: Spoil, reason: str | None) -> None:
    (log,) = federate(spoil).rounds
    assert log.replied == ((0, 1, 2) if reason is None else (0, 1))
    if reason is not None:
        assert log.failed[2].startswith(reason)


@pytest.mark.parametrize("first", ["whole", "part"])
def test_of_two_replies_the_one_with_all_that_was_sent_is_the_usual_one(first: str) -> None:
    sent = RecordDict({ARRAYS: initial_arrays()})
    replies = [RecordDict({ARRAYS: initial_arrays(), METRICS: MetricRecord({TRAIN_LOSS: 0.5})}) for _ in range(2)]
    del replies[1].array_records[ARRAYS][NAME]
    whole, _ = replies
    assert usual_names(replies if first == "whole" else replies[::-1], sent) == usual_names([whole], sent)


def test_a_round_in_which_no_reply_can_be_used_ends_the_run_in_one_line() -> None:
    with pytest.raises(
        FederationError, match=r"round 1: no client trained; client 0: .* holds NaN or infinite values$"
    ):
        federate(put(NAME, torch.full((8, 3, 3, 3), torch.nan).numpy()), liars=(0, 1, 2))
