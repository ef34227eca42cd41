import math

import numpy as np
import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant

from fl_sim.defences.registry import create
from tests.fl_sim.defences.stub import RECIPES, flat, own_update, sent_update

BOTH = pytest.mark.parametrize("kind", RECIPES)


@BOTH
def test_a_long_update_is_scaled_to_the_norm_and_a_short_one_left_alone(kind: str) -> None:
    recipe = RECIPES[kind]
    own = own_update(recipe)
    norm = float(flat(own).norm())
    clipped = sent_update("clip-noise", recipe, own, clip_norm=norm / 3, noise_multiplier=0.0)
    torch.testing.assert_close(flat(clipped), flat(own) / 3, rtol=1e-4, atol=1e-6)
    kept = sent_update("clip-noise", recipe, own, clip_norm=norm * 1.01, noise_multiplier=0.0)
    torch.testing.assert_close(flat(kept), flat(own), rtol=1e-4, atol=1e-6)


@BOTH
def test_the_noise_has_the_promised_deviation_over_many_draws_and_no_mean(kind: str) -> None:
    recipe = RECIPES[kind]
    own = own_update(recipe)
    draws = torch.stack(
        [
            flat(sent_update("clip-noise", recipe, own, clip_norm=2.0, noise_multiplier=0.3, server_round=number))
            for number in range(1, 31)
        ]
    )
    noise = draws - flat(own) * (2.0 / float(flat(own).norm()))
    assert float(noise.std()) == pytest.approx(0.6, rel=1e-3)
    per_entry = noise.std(dim=0)
    assert float(per_entry.mean()) == pytest.approx(0.6, rel=0.02)
    assert float(per_entry.min()) > 0.2
    assert abs(float(noise.mean())) < 5 * 0.6 / math.sqrt(noise.numel())
    correlation = torch.corrcoef(noise[:2])[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(noise.shape[1])


def test_the_noise_follows_the_private_seed_the_client_and_the_round_and_nothing_else() -> None:
    recipe = RECIPES["gradient"]

    def sent(**changes: int) -> torch.Tensor:
        return flat(sent_update("clip-noise", recipe, **changes))

    assert torch.equal(sent(), sent())
    for change in ({"private_seed": 12}, {"client": 1}, {"server_round": 2}):
        assert not torch.equal(sent(), sent(**change))


def test_an_update_of_zeros_stays_finite() -> None:
    recipe = RECIPES["gradient"]
    zeros = {name: torch.zeros_like(value) for name, value in own_update(recipe).items()}
    assert flat(sent_update("clip-noise", recipe, zeros)).isfinite().all()


@pytest.mark.parametrize(("noise_multiplier", "rounds"), [(1.0, 1), (4.0, 10), (10.0, 200)])
def test_the_privacy_spent_is_opacus_figure_for_two_clipped_updates_that_differ_in_everything(
    noise_multiplier: float, rounds: int
) -> None:
    spent = create("clip-noise", {"noise_multiplier": noise_multiplier, "delta": 1e-6}).privacy(
        RECIPES["gradient"], images=5, rounds=rounds
    )
    accountants = RDPAccountant(), PRVAccountant()
    for accountant in accountants:
        for _ in range(rounds):
            accountant.step(noise_multiplier=noise_multiplier / 2, sample_rate=1.0)
    with np.errstate(divide="ignore"):
        rdp, prv = (accountant.get_epsilon(1e-6) for accountant in accountants)
    assert spent is not None
    assert spent.epsilon == pytest.approx(rdp)
    assert spent.delta == 1e-6
    assert 0.75 * spent.epsilon < prv < spent.epsilon


def test_privacy_is_spent_round_by_round_and_clipping_alone_has_none() -> None:
    recipe = RECIPES["gradient"]
    noisy, clipped = (create("clip-noise", {"noise_multiplier": multiplier}) for multiplier in (5.0, 0.0))
    spent = [noisy.privacy(recipe, 5, rounds).epsilon for rounds in (0, 1, 2, 5, 50)]  # type: ignore[union-attr]
    assert spent[0] == 0
    assert spent == sorted(set(spent))
    assert math.isinf(clipped.privacy(recipe, 5, 1).epsilon)  # type: ignore[union-attr]
    hardly = create("clip-noise", {"noise_multiplier": 0.001}).privacy(recipe, 5, 1)
    assert hardly is not None
    assert hardly.epsilon > 1e4
