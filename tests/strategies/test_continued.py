"""What a strategy raises is one line that says in which round."""

import pytest
from flwr.serverapp.strategy import FedAvg

from fl_sim.repeatable_grid import FederationError
from strategies.continued import Continued
from strategies.errors import StrategyError
from tests.strategies.stub_federation import WEIGHTS, run


class Breaks(FedAvg):
    def __init__(self, error: Exception) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.error = error

    def aggregate_train(self, server_round, replies):
        if server_round == 3:
            raise self.error
        return super().aggregate_train(server_round, replies)


def test_a_strategy_that_raises_is_one_line() -> None:
    with pytest.raises(FederationError, match=r"^round 3: strategy Breaks failed: KeyError: 'lost'$"):
        run(Continued(Breaks(KeyError("lost"))), WEIGHTS)


def test_an_error_of_ours_passes() -> None:
    with pytest.raises(StrategyError, match="not this one"):
        run(Continued(Breaks(StrategyError("not this one"))), WEIGHTS)
