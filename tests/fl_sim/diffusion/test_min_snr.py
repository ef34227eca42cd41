import pytest
import torch

from fl_sim import diffusion, network
from fl_sim.diffusion import PREDICTION_TYPES
from tests.fl_sim.diffusion.toy import draw, scheduler, tiny_config

GAMMA = 5.0


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_weights_are_the_papers(prediction_type: str) -> None:
    ddpm, timesteps = scheduler(prediction_type), torch.tensor([0, 100, 400, 999])
    alphas = ddpm.alphas_cumprod[timesteps].double()
    snr = alphas / (1 - alphas)
    assert snr[1] > GAMMA > snr[2]
    divisor = {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": snr + 1}[prediction_type]
    found = diffusion.min_snr_weights(ddpm, timesteps, GAMMA, torch.empty(4, 3, 8, 8, dtype=torch.float64))
    torch.testing.assert_close(found.flatten(), snr.clamp(max=GAMMA) / divisor)


@pytest.mark.parametrize(("prediction_type", "last"), [("epsilon", 1.0), ("sample", 0.0), ("v_prediction", 0.0)])
def test_weights_are_finite_where_there_is_no_signal(prediction_type: str, last: float) -> None:
    config = diffusion.scheduler_config(prediction_type=prediction_type) | {"rescale_betas_zero_snr": True}
    ddpm = diffusion.build_scheduler(config)
    assert ddpm.alphas_cumprod[-1] == 0
    assert diffusion.min_snr_weights(ddpm, torch.tensor([999]), GAMMA, torch.empty(1, 3, 8, 8)).item() == last


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_gradient_is_the_weighted_mean_of_the_samples(prediction_type: str) -> None:
    torch.manual_seed(0)
    model, ddpm, (x0, noise, timesteps) = network.build_model(tiny_config()), scheduler(prediction_type), draw()
    weights = diffusion.min_snr_weights(ddpm, timesteps, GAMMA, x0).flatten().tolist()
    assert len(set(weights)) > 1
    alone = [
        diffusion.gradient(model, ddpm, *(values[i : i + 1] for values in (x0, noise, timesteps)))
        for i in range(len(weights))
    ]
    found = diffusion.gradient(model, ddpm, x0, noise, timesteps, min_snr_gamma=GAMMA)
    for name, value in found.items():
        expected = sum(weight * gradient[name] for weight, gradient in zip(weights, alone, strict=True)) / len(weights)
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)
