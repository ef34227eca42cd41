"""The honest-but-curious server: it aggregates exactly as its strategy says, and attacks what every client sent."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache, partial
from logging import WARNING
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log
from torch import Tensor

from attacks.observation import Circumstances, DefenceDisclosure, Observation, UpdateId
from attacks.workers import AttackPool
from fl_sim.draws import concatenate
from fl_sim.errors import explain
from fl_sim.wire import (
    CLIENT,
    CLIPPING_NORM,
    LABELS,
    NUM_EXAMPLES,
    PARTITION,
    RECIPE,
    Recipe,
    arrays_in,
    dictated_draw,
    read_tensors,
    read_update,
    whole_model,
)
from strategies.continued import Continued
from strategies.errors import ArgumentError, StrategyError
from strategies.layers import own_start
from strategies.sink import DirectorySink, Sink


@dataclass(frozen=True)
class View:
    """A client's reply as a curious server, or a curious peer, sees it.

    Attributes:
        update_id: round, client, and the observing peer if there is no server.
        weights: reads the weights from which the client trained, as far as the observer knows them.
        arrays: the reply's arrays by parameter name.
        num_examples: how many samples the client says that it trained on; None if it does not say.
        labels: the labels that the client says it trained with; empty if it does not say.
    """

    update_id: UpdateId
    weights: Callable[[], dict[str, Tensor]]
    arrays: dict[str, Array]
    num_examples: float | None
    labels: tuple[int, ...] = ()

    @classmethod
    def of(cls, update_id: UpdateId, weights: Callable[[], dict[str, Tensor]], content: RecordDict) -> "View":
        """The view of a reply, with the arrays that it holds now."""
        stated = (record.get(NUM_EXAMPLES) for record in content.metric_records.values())
        num_examples = next((number for number in stated if isinstance(number, int | float)), None)
        revealed = content.config_records[CLIENT].get(LABELS) if CLIENT in content.config_records else None
        labels = tuple(label for label in revealed if isinstance(label, int)) if isinstance(revealed, list) else ()
        return cls(update_id, weights, arrays_in(content), num_examples, labels)


class HonestButCurious(Continued):
    """Wrapper around any Flower strategy that attacks every reply and changes nothing.

    Put it outermost: inside another wrapper it would see updates that the wrapper has already clipped or noised. A
    strategy that overrides ``start`` is refused, as this class runs Flower's rounds. Rounds do not wait for the
    observations: a thread of their own reads, checks and writes them, at most one round behind.

    Args:
        strategy: the server's strategy, to which everything is delegated.
        attacks: names of attacks, or a mapping from names to their arguments.
        workers: Ray actors that attack beside the rounds.
        recipe: how clients train. By default it is read from the messages that ``strategy`` sends.
        seed: public root of the attacks' seeds.
        directory: where captures and reconstructions go.
        defence: what the attacker knows of how clients protect their updates.
        sum_only: whether clients use secure aggregation: the server then sees only the sum of a round's replies.
        sink: takes the observations; ``attacks``, ``workers``, ``seed`` and ``directory`` are then unused.
        rounds_before: rounds of an earlier run that this one goes on from.
        observes: which updates are observed at all; of the others nothing is read.

    Raises:
        AttackError: if an attack does not exist or its arguments are wrong.
        StrategyError: if ``strategy``, or one that it wraps, has a ``start`` of its own, or ``directory`` already holds
            captures; in ``configure_train``, if no recipe can be found.
    """

    def __init__(
        self,
        strategy: Strategy,
        attacks: Iterable[str] | Mapping[str, Mapping[str, Any]] = ("residual",),
        workers: int = 1,
        *,
        recipe: Recipe | None = None,
        seed: int = 0,
        directory: str | Path = "leakage",
        defence: DefenceDisclosure | None = None,
        sum_only: bool = False,
        sink: Sink | None = None,
        rounds_before: int = 0,
        observes: Callable[[UpdateId], bool] = lambda _: True,
    ) -> None:
        if (owner := own_start(strategy)) is not None:
            raise ArgumentError(
                "strategy", f"= {owner!r}: has a start of its own; HonestButCurious runs Flower's rounds"
            )
        super().__init__(strategy, rounds_before)
        self._defence = defence
        self._sum_only = sum_only
        self._recipe = recipe
        self._sent: dict[int, Callable[[], dict[str, Tensor]]] = {}
        self._numbers: dict[int, int] = {}
        self._dictated: DefenceDisclosure | None = None
        if sink is None:
            arguments = attacks if isinstance(attacks, Mapping) else {name: {} for name in attacks}
            sink = DirectorySink(Path(directory), arguments, AttackPool(workers), seed)
        self._sink = sink
        self._observes = observes
        self._observer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="observer")
        self._observing: list[Future[None]] = []

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the federation, then wait for the attacks, because Ray stops when the ServerApp returns."""
        try:
            result = super().start(*args, **kwargs)
            for observed in self._observing:
                observed.result()
            self._sink.drain()
        finally:
            self._observer.shutdown()
            self._sink.close()
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, and remember which weights each client gets."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._sent = _sent(messages)
        for node in sorted(self._sent):
            self._numbers.setdefault(node, len(self._numbers))
        if messages and self._recipe is None:
            self._recipe = _recipe_in(messages[0].content)
        self._dictated = _dictated_clipping(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate, and observe the replies as they were before, because some strategies empty them."""
        replies = list(replies)
        views = list(
            self._views(self.rounds_before + server_round, [reply for reply in replies if not reply.has_error()])
        )
        wait(self._observing)
        self._observing = [observed for observed in self._observing if observed.exception()]  # raised in the end
        try:
            return super().aggregate_train(server_round, replies)
        finally:
            # Not before aggregation, for which the round waits: threads share the interpreter.
            defence = _combine(self._defence, self._dictated)
            for group in [views] if self._sum_only and views else [[view] for view in views]:
                self._observing.append(self._observer.submit(self._observe, group, defence))

    def after_observing(self, action: Callable[[], None]) -> None:
        """Call ``action`` in the thread that observes, once every reply so far has been observed."""
        self._observing.append(self._observer.submit(action))

    def _views(self, server_round: int, replies: Sequence[Message]) -> Iterable[View]:
        """A round's replies as the server sees them: all of them, each with the weights that it sent."""
        for reply in replies:
            node = reply.metadata.src_node_id
            client = _partition_of(reply.content, default=self._numbers[node])
            yield View.of(UpdateId(server_round, client), self._sent[node], reply.content)

    def _observe(self, views: Sequence[View], defence: DefenceDisclosure | None) -> None:
        """Observe one reply, or the sum of several."""
        update_id = views[0].update_id if len(views) == 1 else replace(views[0].update_id, client=-1)
        if not self._observes(update_id):
            return
        try:
            assert self._recipe is not None  # configure_train saw to it
            self._sink.observe(make_observation(self._recipe, update_id, views, defence))
        except Exception as error:  # a reply that cannot be observed must not disturb the federation
            reason = explain(error)
            log(WARNING, "%s not observed: %s", update_id, reason)
            self._sink.failed(update_id, reason)


def make_observation(
    recipe: Recipe, update_id: UpdateId, views: Sequence[View], defence: DefenceDisclosure | None
) -> Observation:
    """The observation of one reply, or of the sum of several, from clients that trained by ``recipe``.

    Raises:
        CaptureError: if a reply does not fit the model.
        StrategyError: if the replies that are summed come from different numbers of local steps.
        KeyError, ValueError, TypeError: if a reply lacks weights or holds no numbers.
    """
    views = sorted(views, key=lambda view: view.update_id.client)
    weights = {name: value.float() for name, value in whole_model(recipe, views[0].weights()).items()}
    num_examples = [_num_examples(view, recipe) for view in views]
    recipe = _with_local_steps(recipe.in_round(update_id.round), num_examples)
    noise, timesteps, labels = None, None, None
    if recipe.noise_seed is not None:
        draws = [dictated_draw(recipe, view.update_id.client, update_id.round) for view in views]
        noise, timesteps = (concatenate(parts) for parts in zip(*draws, strict=True))
    if recipe.reveals_labels:
        labels = torch.tensor([label for view in views for label in view.labels], dtype=torch.int64)
    return Observation(
        Circumstances(
            task=recipe.task,
            round=update_id.round,
            client=update_id.client,
            update="gradient" if recipe.update == "gradient" else "delta",
            num_examples=sum(num_examples),
            batch_size=recipe.batch_size,
            local_steps=recipe.local_steps,
            local_optimizer=None if recipe.update == "gradient" else recipe.optimizer,
            defence=defence,
            ema_decay=None if recipe.update == "gradient" else recipe.ema_decay,
            dtype=recipe.dtype,
            image_shape=recipe.image_shape,
            model=recipe.model,
            num_clients=len(views),
            observer=update_id.observer,
        ),
        weights,
        _sum([read_update(weights, view.arrays, recipe) for view in views], recipe),
        noise,
        timesteps,
        labels,
    )


def _sum(updates: Sequence[dict[str, Tensor]], recipe: Recipe) -> dict[str, Tensor]:
    """The sum of the updates, without weights that all clients returned unchanged: nobody trained them."""
    total = updates[0]
    if differing := set().union(*updates) - set(total).intersection(*updates):
        raise StrategyError(f"the replies that are summed do not hold the same parameters: {min(differing)} is in some")
    if len(updates) > 1:
        totals = {name: torch.stack([update[name].double() for update in updates]).sum(dim=0) for name in total}
        total = {name: value.float() for name, value in totals.items()}
    return {name: value for name, value in total.items() if recipe.update == "gradient" or value.any()}


def _sent(messages: Sequence[Message]) -> dict[int, Callable[[], dict[str, Tensor]]]:
    """For each node a reader of the weights sent to it; nodes that got the same record share a reader."""
    records = {message.metadata.dst_node_id: next(iter(message.content.array_records.values())) for message in messages}
    readers = {id(record): cache(partial(read_tensors, dict(record))) for record in records.values()}
    return {node: readers[id(record)] for node, record in records.items()}


def _recipe_in(content: RecordDict) -> Recipe:
    for config in content.config_records.values():
        if RECIPE in config:
            return Recipe.from_config(config)
    raise StrategyError(
        "HonestButCurious does not know how clients train: pass recipe=Recipe(…), "
        "or start with train_config=Recipe(…).to_config()"
    )


def _with_local_steps(recipe: Recipe, num_examples: Sequence[int]) -> Recipe:
    """The recipe of clients that drew so many samples each, with epochs turned into local steps."""
    recipes = {count: recipe.of_samples(count) for count in num_examples}
    if recipe.epochs is not None and len(recipes) > 1:
        raise StrategyError(f"the sum of clients that drew {sorted(recipes)} samples, each its own number of steps")
    return recipes[num_examples[0]]


def _dictated_clipping(messages: Sequence[Message]) -> DefenceDisclosure | None:
    """The clipping that the server dictates, as some of Flower's strategies do; None if it dictates none."""
    for message in messages:
        for config in message.content.config_records.values():
            if CLIPPING_NORM in config:
                return DefenceDisclosure(clip_norm=float(str(config[CLIPPING_NORM])))
    return None


def _combine(defence: DefenceDisclosure | None, dictated: DefenceDisclosure | None) -> DefenceDisclosure | None:
    """The clients' own defence together with the clipping that the server dictates."""
    if defence is None or dictated is None:
        return defence or dictated
    norms = [norm for norm in (defence.clip_norm, dictated.clip_norm) if norm is not None]
    return defence.model_copy(update={"clip_norm": min(norms)})


def _partition_of(content: RecordDict, default: int) -> int:
    """The client's number as its reply states it, else ``default``."""
    stated = content.config_records[CLIENT].get(PARTITION) if CLIENT in content.config_records else None
    return stated if isinstance(stated, int) and stated >= 0 else default


def _num_examples(view: View, recipe: Recipe) -> int:
    return recipe.samples(images=1) if view.num_examples is None else int(view.num_examples)
