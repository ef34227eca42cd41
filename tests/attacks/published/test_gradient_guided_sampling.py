import pytest
import torch
from torch import Tensor

from attacks.attack import AttackError
from attacks.inversion.problem import InversionProblem
from attacks.published import gradient_guided_sampling
from attacks.published.gradient_guided_sampling import reverse_step, spaced
from attacks.registry import create
from fl_sim import diffusion
from tests.attacks.conftest import make_classification_victim, make_victim
from tests.attacks.published.test_gradient_guided_finetuning import imaginative_prior

NAME = "gradient-guided-sampling"


@pytest.mark.parametrize("timestep", [999, 400, 1])
def test_a_reverse_step_is_that_of_ddpm(timestep):
    scheduler = diffusion.build_scheduler(diffusion.scheduler_config(prediction_type="sample"))
    x_t, x0 = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    x0 = x0.clamp(-1, 1)  # as diffusers does
    mean, variance = reverse_step(scheduler, x_t, x0, timestep, timestep - 1)
    assert variance == pytest.approx(float(scheduler._get_variance(timestep)), rel=1e-3)
    reference = scheduler.step(x0, timestep, x_t, generator=torch.Generator().manual_seed(4)).prev_sample
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(mean + variance**0.5 * noise, reference, rtol=1e-4, atol=1e-4)


def test_the_last_step_ends_at_the_image_without_noise():
    scheduler = diffusion.build_scheduler(diffusion.scheduler_config())
    x_t, x0 = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.25)
    mean, variance = reverse_step(scheduler, x_t, x0, 0, -1)
    torch.testing.assert_close(mean, x0)
    assert variance == 0


def test_timesteps_are_spread_over_the_schedule():
    assert spaced(InversionProblem(make_victim().observation, "cpu").scheduler, 4) == [999, 666, 333, 0]
    few = diffusion.build_scheduler(diffusion.scheduler_config(5))
    assert spaced(few, 100) == [4, 3, 2, 1, 0]


def test_a_mean_moves_against_the_clipped_derivative(monkeypatch, tmp_path):
    """Beside an unguided sample of the same noise the second x_t is lower by guidance, variance and derivative."""
    seen, predict = make_classification_victim((3,)).observation, diffusion.predict
    points: list[Tensor] = []

    def watched(model, x_t, timesteps, labels):
        points.append(x_t.detach().clone())
        return predict(model, x_t, timesteps, labels)

    monkeypatch.setattr(gradient_guided_sampling.diffusion, "predict", watched)
    arguments = {"prior": imaginative_prior(tmp_path), "steps": 2, "clip": 1e-9}
    for guidance in (0.0, 1e8):
        create(NAME, arguments | {"guidance": guidance}).reconstruct(seen, seed=101)
    free_start, free, guided_start, guided = points
    assert torch.equal(free_start, guided_start)
    scheduler = diffusion.build_scheduler(diffusion.scheduler_config(prediction_type="sample"))
    _, variance = reverse_step(scheduler, free_start, free_start, 999, 0)
    # Almost every entry of the derivative is above the clip, so that its sign alone counts.
    moved = ((guided - free).abs() - 1e8 * 1e-9 * variance).abs() < 1e-5
    assert float(moved.float().mean()) > 0.95


@pytest.mark.parametrize("distance", ["squared", "cosine"])
def test_guidance_brings_the_image_nearer(tmp_path, distance):
    victim, prior = make_classification_victim((3,)), imaginative_prior(tmp_path)
    free, guided = (
        create(NAME, {"prior": prior, "distance": distance} | guidance).reconstruct(victim.observation, seed=101)
        for guidance in ({"guidance": 0.0}, {})
    )
    assert guided.matching_loss < 0.75 * free.matching_loss
    assert victim.psnr(guided.images) > victim.psnr(free.images)
    assert (guided.evaluations, guided.labels.tolist()) == (100, [3])


def test_a_classifier_needs_a_prior_of_its_own():
    with pytest.raises(AttackError, match=rf"^attack '{NAME}': prior = 'global' names .* a classifier; allowed: the p"):
        create(NAME).reconstruct(make_classification_victim((3,)).observation, seed=101)


def test_private_noise_is_refused_by_name(victim):
    with pytest.raises(AttackError, match=f"^attack '{NAME}' needs noise and timesteps"):
        create(NAME).reconstruct(victim.observation, seed=101)
