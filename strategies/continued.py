"""A strategy that goes on where a run was broken off: Flower counts rounds from 1, the strategy from a later one."""

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy


class Continued(Strategy):
    """Wrapper around any Flower strategy that adds the rounds of earlier runs to the number of every round.

    Args:
        strategy: the server's strategy, to which everything is delegated; it remembers those rounds
            (strategies/state.py).
        rounds_before: how many there were.
    """

    def __init__(self, strategy: Strategy, rounds_before: int = 0) -> None:
        self.strategy = strategy
        self.rounds_before = rounds_before

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return self.strategy.configure_train(self.rounds_before + server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate."""
        return self.strategy.aggregate_train(self.rounds_before + server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return self.strategy.configure_evaluate(self.rounds_before + server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Delegate."""
        return self.strategy.aggregate_evaluate(self.rounds_before + server_round, replies)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered from round to round: nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what ``state_dict`` returned."""

    def summary(self) -> None:
        """Delegate."""
        self.strategy.summary()
