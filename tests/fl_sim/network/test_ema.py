import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from fl_sim.network import ema_decays, ema_shares


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.9999])
def test_decays_and_shares_are_those_of_diffusers(decay: float) -> None:
    weights = torch.randn(7, generator=torch.Generator().manual_seed(0)).double()
    parameter = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    average, decays = EMAModel([parameter], decay=decay), []
    for weight in weights:
        parameter.data.fill_(weight)
        average.step([parameter])
        decays.append(average.cur_decay_value)
    assert ema_decays(decay, 7) == pytest.approx(decays)
    shares = torch.tensor(ema_shares(decay, 7), dtype=torch.float64)
    torch.testing.assert_close(shares @ weights, average.shadow_params[0][0])
    assert float(shares.sum()) == pytest.approx(1)


def test_without_a_decay_the_last_weights_are_all_there_is() -> None:
    assert ema_shares(None, 3) == [0.0, 0.0, 1.0]
