"""A strategy that goes on where a run was broken off: Flower counts rounds from 1, the strategy from a later one."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.app.exception import AppExitException
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_sim.errors import UserError, explain
from fl_sim.repeatable_grid import FederationError


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
        number = self.rounds_before + server_round
        with self._in_round(number):
            return list(self.strategy.configure_train(number, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate."""
        number = self.rounds_before + server_round
        with self._in_round(number):
            return self.strategy.aggregate_train(number, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return self.strategy.configure_evaluate(self.rounds_before + server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Delegate."""
        return self.strategy.aggregate_evaluate(self.rounds_before + server_round, replies)

    @contextmanager
    def _in_round(self, number: int) -> Iterator[None]:
        """Say in one line which round failed; what was written of those before stays.

        Raises:
            FederationError: if the strategy raises anything but an error of ours or of Flower.
        """
        try:
            yield
        except (UserError, FederationError, AppExitException):
            raise
        except Exception as error:  # whatever a stranger's strategy raises
            name = type(self.strategy).__name__
            raise FederationError(f"round {number}: strategy {name} failed: {explain(error)}") from error

    def state_dict(self) -> dict[str, Any]:
        """What is remembered from round to round: nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what ``state_dict`` returned."""

    def summary(self) -> None:
        """Delegate."""
        self.strategy.summary()
