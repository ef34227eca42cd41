import pytest
import torch

from fl_sim.defences.defence import UpdateDefence
from fl_sim.defences.registry import create
from tests.fl_sim.defences.stub import RECIPES, flat, own_update, sent_update

NAME = "mid_block.resnets.0.conv1.weight"


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize(("bits", "levels"), [(2, 1), (4, 7)])
def test_entries_lie_on_the_levels_next_to_their_value(kind: str, bits: int, levels: int) -> None:
    own = own_update(RECIPES[kind])
    for name, value in sent_update("stochastic-quantisation", RECIPES[kind], own, bits=bits).items():
        step = own[name].abs().max() / levels
        multiples = value / step
        assert float((multiples - multiples.round()).abs().max()) < 1e-3
        assert float(multiples.abs().max()) < levels + 1e-3
        assert float((value - own[name]).abs().max()) < 1.001 * step
    assert len(multiples.round().unique()) > 1


def test_rounding_is_right_on_average_and_has_the_noise_of_a_coin() -> None:
    defence, generator = create("stochastic-quantisation", {"bits": 3}), torch.Generator().manual_seed(1)
    assert isinstance(defence, UpdateDefence)
    own = {NAME: own_update(RECIPES["gradient"])[NAME]}
    draws = torch.stack([defence.protect(own, generator)[NAME] for _ in range(100)])
    step = own[NAME].abs().max() / 3
    share = (own[NAME] / step) % 1
    expected = step * (share * (1 - share)).sqrt()
    deviations = (draws.mean(dim=0) - own[NAME]) / (expected / 10).clamp_min(1e-6)
    assert float(deviations.square().mean().sqrt()) == pytest.approx(1.0, abs=0.1)
    assert float(draws.var(dim=0).mean().sqrt()) == pytest.approx(float(expected.square().mean().sqrt()), rel=0.02)


def test_a_tensor_of_zeros_stays_one() -> None:
    recipe = RECIPES["gradient"]
    zeros = {name: torch.zeros_like(value) for name, value in own_update(recipe).items()}
    assert not flat(sent_update("stochastic-quantisation", recipe, zeros)).any()
