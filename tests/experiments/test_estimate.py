import itertools
from unittest.mock import patch

import pytest

from experiments.estimate import STARTING_SECONDS, Cost, estimate
from experiments.experiment import prepare
from tests.experiments.made_up_run import tiny_settings

GUESS = "attack.name=tests.attacks.toy_attacks:Guess"


def cost(*overrides: str) -> Cost:
    """What it costs where a reply and a gradient take a second each."""
    with patch("experiments.estimate.perf_counter", side_effect=itertools.count()):
        return estimate(prepare(tiny_settings(*overrides)))


def test_attacks_are_counted_and_bounded_by_their_budget_and_the_timeout() -> None:
    assert cost("attack.args.residual.max_evaluations=50", "attack.workers=1") == Cost(4, 4, 4 * 50 * 2)
    assert cost("attack.args.residual.max_evaluations=50", "attack.workers=2", "attack.timeout=30") == Cost(4, 4, 60)
    # An evaluation is two gradients.
    # Several images share a budget times the root of their number; what was timed is the gradient of one client's.
    four = cost("attack.args.residual.max_evaluations=50", "attack.workers=1", "client.batch_size=4")
    assert four == Cost(4, 4, 4 * 50 * 2 * 2)
    summed = cost("attack.args.residual.max_evaluations=50", "attack.workers=1", "defence.name=secure-aggregation")
    assert summed.attacks == 2
    assert summed.attacking == pytest.approx(2 * 50 * 2 * 2**0.5 * 2)
    # Of an attack without a budget only the timeout is known.
    assert cost(GUESS, "attack.timeout=70", "attack.workers=1") == Cost(4, 4, 4 * 70)


def test_a_reply_takes_as_long_as_its_local_steps() -> None:
    weights = ("client.update=weights", "strategy.name=FedAvg", "client.local_steps=4", GUESS)
    # The gradient over all four steps took a second, of which one is in the reply that was timed.
    assert cost(*weights).training == 4 * (1 - 1 / 4 + 1)


def test_where_nobody_attacks_there_is_only_training() -> None:
    for setting in ("attack.name=none", "attack.when=never"):
        found = cost(setting)
        assert (found.attacks, found.attacking) == (0, 0)
        assert found.at_most() == found.at_least() == STARTING_SECONDS + found.training


def test_it_is_put_in_words() -> None:
    assert str(Cost(10, 4, 100)) == "30 s, of which 10 s training; with 4 attacks to the end of their budgets 2 min"
    assert str(Cost(0.25, 0, 0)) == "20 s, of which 0.2 s training"
