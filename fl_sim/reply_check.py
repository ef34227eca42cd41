"""Whether a client's reply to a train message can be used. One that cannot counts as no reply: the round goes on."""

import math
from collections import Counter
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fl_sim.errors import explain, printable
from fl_sim.wire import (
    CLIENT,
    CONFIG,
    DEVICE,
    METRICS,
    NUM_EXAMPLES,
    PARTITION,
    RECIPE,
    TRAIN_LOSS,
    Recipe,
    read_tensors,
)

Names = tuple[tuple[str, ...], ...]
"""For each record of a reply its own name and the names in it, sorted."""


def usual_names(replies: Iterable[RecordDict], sent: RecordDict) -> Names:
    """The names that most of a round's replies have: strategies need the same of all.

    Of several that are as frequent, those with the arrays that were ``sent``.
    """
    counted = Counter(map(_names, replies))
    whole = {tuple(sorted(record)) for record in sent.array_records.values()}
    return max(counted, key=lambda names: (counted[names], any(of[1:] in whole for of in names)), default=())


def _names(reply: RecordDict) -> Names:
    records: list[tuple[str, Iterable[str]]] = [*reply.array_records.items(), *reply.metric_records.items()]
    return tuple(sorted((name, *sorted(record)) for name, record in records))


def why_unusable(reply: RecordDict, asked: Message, client: int, usual: Names) -> str | None:
    """The reason in one line; None if the reply is one of ``client`` to the train message ``asked``.

    ``usual``: as ``usual_names`` has it.
    """
    try:
        return _wrong_facts(reply, asked, client) or _wrong_arrays(reply, asked, usual)
    except Exception as error:  # whatever a stranger's bytes make NumPy raise
        return printable(f"the reply cannot be read: {explain(error)}")


def _wrong_facts(reply: RecordDict, asked: Message, client: int) -> str | None:
    metrics = reply.metric_records.get(METRICS, MetricRecord())
    facts = reply.config_records.get(CLIENT, ConfigRecord())
    loss, device = metrics.get(TRAIN_LOSS), facts.get(DEVICE)
    if len(reply.metric_records) != 1 or not isinstance(loss, int | float):
        return f"the reply has no number {METRICS}.{TRAIN_LOSS}"
    if not isinstance(device, str) or not device.isprintable() or len(device) > 100:
        return f"the reply has no name {CLIENT}.{DEVICE}"
    if facts.get(PARTITION) != client:
        return f"the reply says that it is of client {printable(facts.get(PARTITION))[:40]}"
    number, expected = metrics.get(NUM_EXAMPLES), _expected_examples(asked)
    if not isinstance(number, int | float) or not math.isfinite(number) or not 1 <= number < 2**53:
        return f"the reply says that it trained on {printable(number)[:40]} images"
    if expected is not None and number != expected:
        return f"the reply says that it trained on {number:g} images, it was asked for {expected}"
    return None


def _expected_examples(asked: Message) -> int | None:
    """How many images a client was asked to train on; None where that depends on how many it holds."""
    config = asked.content.config_records.get(CONFIG, ConfigRecord())
    recipe = Recipe.from_config(config) if RECIPE in config else None
    return None if recipe is None or recipe.epochs is not None else recipe.samples(images=1)


def _wrong_arrays(reply: RecordDict, asked: Message, usual: Names) -> str | None:
    if len(reply.array_records) != 1:
        return f"the reply has {len(reply.array_records)} records of arrays; allowed: one"
    arrays = next(iter(reply.array_records.values()))
    sent = next(iter(asked.content.array_records.values()))
    if not arrays:
        return "the reply's update is empty"
    for name, array in arrays.items():
        if name not in sent:
            return f"the reply's {printable(name)[:80]} is no parameter that was sent"
        value = read_tensors({name: array})[name]
        if tuple(value.shape) != tuple(sent[name].shape):
            return f"the reply's {name} has shape {list(value.shape)}, {list(sent[name].shape)} was sent"
        if value.is_floating_point() != sent[name].dtype.startswith("float"):
            return f"the reply's {name} is of type {array.dtype}, {sent[name].dtype} was sent"
        if value.is_complex() or not value.isfinite().all():
            return f"the reply's {name} holds NaN or infinite values"
    return None if _names(reply) == usual else "the reply has other parameters or metrics than most have"
