import pytest
import torch
from pydantic import ValidationError
from torch import nn

from attacks.model_inversion.conditional_prior import ConditionalPrior
from attacks.model_inversion.image_search import ImageSearch
from attacks.model_inversion.margin_loss import ClassLoss, MarginLoss
from attacks.model_inversion.target import Target
from fl_sim.diffusion import build_scheduler, scheduler_config

LABELS = torch.tensor([0, 1, 2])


class Counting(nn.Module):
    """Predicts the noise to be its scaled input; remembers when it was asked."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.scale, self.called = scale, []

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.called.append(int(timesteps[0]))
        return self.scale * x_t


@pytest.fixture
def prior() -> ConditionalPrior:
    return ConditionalPrior(Counting(), build_scheduler(scheduler_config()), null_label=3, config={})


def loss(target: Target) -> ClassLoss:
    return MarginLoss().of(target)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_schedule_is_the_published_one_less_one() -> None:
    """t = ((S-i)/1.5 + (S-i)/3 cos(3 i/(10 pi)))/S 800 + 200, for S = 30, computed by hand for i = 0, 10, 29."""
    search = ImageSearch(timestep_jitter=0)
    found = [search.timestep(iteration, seeded()) for iteration in (0, 10, 29)]
    # i = 10: (20/1.5 + 20/3 cos(0.9549))/30 800 + 200 = (13.333 + 3.851)/30 800 + 200 = 658.2
    # i = 29: (0.6667 + 0.3333 cos(2.7693))/30 800 + 200 = (0.6667 - 0.3105)/30 800 + 200 = 209.5
    assert found == [999, 657, 208]


def test_the_schedule_is_shifted_at_random_and_stays_among_the_timesteps() -> None:
    search, generator = ImageSearch(timestep_floor=1, timestep_jitter=50), seeded()
    shifted = {search.timestep(10, generator) for _ in range(300)}
    middle = ImageSearch(timestep_floor=1, timestep_jitter=0).timestep(10, generator)
    assert min(shifted) == middle - 50
    assert max(shifted) == middle + 50
    ends = {search.timestep(iteration, generator) for iteration in (0, 29) for _ in range(300)}
    assert min(ends) == 0
    assert max(ends) == 999


@pytest.mark.parametrize(("terms", "prior_calls", "judged"), [("both", 5, 5), ("prior", 5, 0), ("classifier", 0, 5)])
def test_every_iteration_takes_the_steps_that_are_asked_for(
    target: Target, prior: ConditionalPrior, terms, prior_calls: int, judged: int
) -> None:
    search = ImageSearch(iterations=5, final_steps=4, augmentation={"copies": 2})
    before = target.evaluations
    found = search.run(prior, loss(target), LABELS, terms, seeded())
    assert found.shape == (3, 1, 8, 8)
    assert len(prior.model.called) == prior_calls + 4
    assert prior.model.called[-4:] == [99, 66, 33, 0]
    assert target.evaluations - before == judged * 2 * 3


def test_the_classifiers_gradient_is_clipped_to_the_priors_mean_norm(
    target: Target, prior: ConditionalPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    monkeypatch.setattr(
        "attacks.model_inversion.image_search._step", lambda _, __, gradient: norms.append(gradient.norm().item())
    )
    strong = MarginLoss(feature_weight=1e6).of(target)
    ImageSearch(iterations=2).run(prior, strong, LABELS, "both", seeded())
    first, clipped, second, clipped_again = norms
    assert clipped == pytest.approx(1.25 * first, rel=1e-4)
    assert clipped_again == pytest.approx(1.25 * (0.5 * first + 0.5 * second), rel=1e-4)
    norms.clear()
    ImageSearch(iterations=1, clip=1e9).run(prior, loss(target), LABELS, "both", seeded())
    unclipped = norms[1]
    norms.clear()
    ImageSearch(iterations=1).run(prior, loss(target), LABELS, "classifier", seeded())
    assert unclipped > 0
    assert len(norms) == 1


def test_batches_are_searched_one_after_the_other(target: Target, prior: ConditionalPrior) -> None:
    ImageSearch(iterations=3, batch_size=2, final_steps=2).run(prior, loss(target), LABELS, "prior", seeded())
    assert len(prior.model.called) == 2 * (3 + 2)


def test_final_steps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="final_steps = 10: at most final_timestep = 5"):
        ImageSearch(final_timestep=5)
