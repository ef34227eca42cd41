import math

import pytest
import torch

from tests.fl_sim.defences.stub import RECIPES, flat, own_update, sent_update


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("fraction", [0.001, 0.1, 1.0])
def test_the_largest_entries_are_sent_as_they_are_and_no_others(kind: str, fraction: float) -> None:
    own = own_update(RECIPES[kind])
    sent = flat(sent_update("top-k", RECIPES[kind], own, fraction=fraction))
    kept = sent != 0
    assert int(kept.sum()) == math.ceil(fraction * len(sent))
    torch.testing.assert_close(sent[kept], flat(own)[kept], rtol=1e-4, atol=1e-6)
    if fraction < 1:
        assert flat(own)[kept].abs().min() >= flat(own)[~kept].abs().max()


def test_of_equal_entries_no_more_are_sent_than_promised() -> None:
    recipe = RECIPES["gradient"]
    own = {name: torch.ones_like(value) for name, value in own_update(recipe).items()}
    sent = flat(sent_update("top-k", recipe, own, fraction=0.01))
    assert int((sent != 0).sum()) == math.ceil(0.01 * len(sent))
