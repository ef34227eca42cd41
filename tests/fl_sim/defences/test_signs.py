import pytest
import torch

from tests.fl_sim.defences.stub import RECIPES, flat, own_update, sent_update


@pytest.mark.parametrize("kind", RECIPES)
def test_signs_times_each_tensors_mean_magnitude_are_sent(kind: str) -> None:
    own = own_update(RECIPES[kind])
    for name, value in sent_update("signs", RECIPES[kind], own).items():
        assert torch.equal(value.sign(), own[name].sign())
        magnitude = own[name].abs().mean().expand_as(value)
        torch.testing.assert_close(value.abs(), magnitude, rtol=1e-4, atol=1e-6)


def test_that_is_the_multiple_of_the_signs_nearest_to_the_update() -> None:
    own = own_update(RECIPES["gradient"])
    for name, value in sent_update("signs", RECIPES["gradient"], own).items():
        distances = [float((factor * value - own[name]).norm()) for factor in (0.95, 1.0, 1.05)]
        assert min(distances) == distances[1]


def test_a_fixed_magnitude_leaves_the_signs_alone_and_zero_stays_zero() -> None:
    recipe = RECIPES["gradient"]
    own = own_update(recipe)
    first = next(iter(own))
    own[first].view(-1)[:3] = 0
    sent = sent_update("signs", recipe, own, magnitude=0.25)
    assert set(flat(sent).unique().tolist()) == {-0.25, 0.0, 0.25}
    assert torch.equal(sent[first] == 0, own[first] == 0)
