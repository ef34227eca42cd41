import pytest
import torch
from torch import nn

from attacks.model_inversion.conditional_prior import ConditionalPrior
from attacks.model_inversion.samplers import ddim, dpm_solver
from fl_sim.diffusion import build_scheduler, scheduler_config

LABELS = torch.tensor([0, 1])
X0 = torch.tensor([-0.6, 0.7])[:, None, None, None].expand(2, 1, 4, 4)


class Oracle(nn.Module):
    """Knows the image of every class: 0 and 1 are those of X0, 2, the null label, is grey."""

    def __init__(self) -> None:
        super().__init__()
        self.images = torch.cat([X0, torch.zeros(1, 1, 4, 4)])
        self.called: list[int] = []

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.called.append(int(timesteps[0]))
        signal = build_scheduler(scheduler_config()).alphas_cumprod[timesteps][:, None, None, None]
        return (x_t - signal.sqrt() * self.images[labels]) / (1 - signal).sqrt()


@pytest.fixture
def prior() -> ConditionalPrior:
    return ConditionalPrior(Oracle(), build_scheduler(scheduler_config()), null_label=2, config={})


def randn(seed: int) -> torch.Tensor:
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_dpm_solver_calls_the_model_once_a_step_and_finds_what_the_model_knows(
    prior: ConditionalPrior, steps: int
) -> None:
    *predicted, sample = dpm_solver(prior, randn(0), LABELS, steps, guidance=1.0)
    assert len(predicted) == steps
    assert len(prior.model.called) == steps
    assert prior.model.called == sorted(set(prior.model.called), reverse=True)
    assert prior.model.called[0] == 999
    for images in (*predicted, sample):
        torch.testing.assert_close(images, X0, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("start", "steps", "eta"), [(99, 10, 1.0), (99, 100, 0.0), (999, 20, 1.0), (0, 1, 1.0)])
def test_ddim_calls_the_model_once_a_step_and_finds_what_the_model_knows(
    prior: ConditionalPrior, start: int, steps: int, eta: float
) -> None:
    found = ddim(prior, randn(0), start, LABELS, steps, 1.0, eta, torch.Generator().manual_seed(1))
    assert len(prior.model.called) == steps
    assert prior.model.called[0] == start
    torch.testing.assert_close(found, X0, atol=1e-5, rtol=0)


def test_more_steps_than_timesteps_are_no_ddim(prior: ConditionalPrior) -> None:
    with pytest.raises(AssertionError):
        ddim(prior, randn(0), 4, LABELS, 6, 1.0, 0.0, torch.Generator())


def test_without_eta_ddim_does_not_depend_on_the_generator(prior: ConditionalPrior) -> None:
    prior.model.images = torch.full_like(prior.model.images, 0.1)
    one, other = (ddim(prior, randn(0), 99, LABELS, 5, 1.0, 0.0, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert torch.equal(one, other)


def test_guidance_goes_beyond_the_label_away_from_none(prior: ConditionalPrior) -> None:
    x_t = randn(2)
    given, without = (prior.noise(x_t, 500, LABELS, guidance) for guidance in (1.0, 0.0))
    torch.testing.assert_close(prior.noise(x_t, 500, LABELS, 3.0), 3 * given - 2 * without)
    null = torch.full_like(LABELS, 2)
    torch.testing.assert_close(without, prior.model(x_t, torch.tensor([500, 500]), null))
