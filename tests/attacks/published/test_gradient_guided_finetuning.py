from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks.attack import AttackError
from attacks.inversion.gradient_matching import match_pixels
from attacks.published.ddim_prior import load_prior
from attacks.published.gradient_guided_finetuning import tuned
from attacks.registry import create
from fl_sim import diffusion
from tests.attacks.conftest import MODEL, SHAPE, make_classification_victim, make_victim
from tests.attacks.finite_differences import double_problem
from tests.attacks.published.test_gidm import save_checkpoint

NAME = "gradient-guided-finetuning"
SHORT = {"iterations": 5, "sampler_steps": 2, "candidates": 2}


class Scaled(nn.Module):
    """A network whose prediction is its one weight times the image."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        return self.factor * x_t


class Target:
    """D = |x - target|^2 in place of the distance of gradients."""

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def __call__(self, unknowns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        difference = unknowns[0].detach() - self.target
        return difference.square().sum(), [2 * difference]


def test_loss_and_derivative_of_the_weights_are_those_worked_out_by_hand():
    """One step of a network that predicts x0 as w z: the image is w z, D = |w z - x|^2 and dD/dw = 2 (w z - x) z."""
    scheduler = diffusion.build_scheduler(diffusion.scheduler_config(prediction_type="sample"))
    prior = diffusion.DDIMSampler(Scaled(0.0), scheduler, 1, clip=False)
    latent, target = torch.tensor([[[[2.0, -1.0]]]]), torch.tensor([[[[0.5, 0.25]]]])
    value, (derivative,) = tuned(Target(target), prior, latent, [torch.tensor(0.5, dtype=torch.float64)])
    assert float(value) == pytest.approx((1 - 0.5) ** 2 + (-0.5 - 0.25) ** 2)
    assert float(derivative) == pytest.approx(2 * (1 - 0.5) * 2 + 2 * (-0.5 - 0.25) * -1)


def test_the_derivative_goes_through_sampler_and_gradient():
    problem = double_problem(make_victim(known=True).observation)
    prior = load_prior(problem, "global", steps=3, clip=True)
    prior.model.requires_grad_(True)
    matching, latent = match_pixels(problem, "double-backward"), torch.randn(1, *SHAPE, dtype=torch.float64)
    weights = [parameter.detach().clone() for parameter in prior.model.parameters()]
    direction = [torch.randn(weight.shape, dtype=torch.float64) * weight.abs() for weight in weights]

    def value(step: float) -> float:
        moved = [weight + step * along for weight, along in zip(weights, direction, strict=True)]
        return float(tuned(matching, prior, latent, moved)[0])

    _, derivatives = tuned(matching, prior, latent, weights)
    expected = sum(float((a * b).sum()) for a, b in zip(derivatives, direction, strict=True))
    assert (value(1e-6) - value(-1e-6)) / 2e-6 == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("known", [True, False])
def test_recomputed_steps_give_the_same_bits_as_kept_ones(known):
    seen = make_victim(known=known).observation
    kept, again = (create(NAME, SHORT | {"recompute": choice}).reconstruct(seen, seed=101) for choice in (False, True))
    assert torch.equal(kept.images, again.images)
    assert (kept.matching_loss, kept.evaluations) == (again.matching_loss, again.evaluations)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_model_is_called_once_a_step_of_the_sampler_and_again_only_to_recompute(monkeypatch, tmp_path, recompute):
    prior, calls = imaginative_prior(tmp_path), []
    monkeypatch.setattr(diffusion.sampler, "predict", counted(diffusion.sampler.predict, calls))
    seen = make_classification_victim((3,), classifier="ConvNet").observation
    arguments = {"prior": prior, "sampler_steps": 4, "iterations": 3, "candidates": 2, "recompute": recompute}
    result = create(NAME, arguments).reconstruct(seen, seed=101)
    # Two candidates, three iterations and the images found; a backward pass belongs to the iterations alone.
    assert len(calls) == 4 * (2 + 3 + 1) + 4 * 3 * recompute
    assert result.evaluations == 2 + 3 + 1
    assert set(calls) == {999, 749, 499, 249}


def counted(predict, calls: list[int]):
    def counting(model: nn.Module, x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        calls.append(int(timesteps[0]))
        return predict(model, x_t, timesteps, labels)

    return counting


def imaginative_prior(folder: Path) -> str:
    """An untrained network that predicts x0: its images are within their range."""
    return save_checkpoint(folder / "prior", make_victim(seed=5, prediction_type="sample"))


@pytest.mark.parametrize(("distance", "floor"), [("squared", 24), ("cosine", 20)])
def test_it_finds_the_image_of_a_classifier(tmp_path, distance, floor):
    victim = make_classification_victim((3,))
    arguments = {
        "prior": imaginative_prior(tmp_path),
        "sampler_steps": 2,
        "lr": 1e-3,
        "iterations": 120,
        "distance": distance,
    }
    start = create(NAME, arguments | {"iterations": 1}).reconstruct(victim.observation, seed=101)
    result = create(NAME, arguments).reconstruct(victim.observation, seed=101)
    assert victim.psnr(start.images) < 15
    assert victim.psnr(result.images) > floor
    assert (result.labels.tolist(), result.timesteps.tolist()) == ([3], [-1])


def test_it_finds_the_images_of_a_batch_with_noise_that_was_dictated(tmp_path):
    victim = make_victim((400, 100), known=True)
    arguments = {"prior": imaginative_prior(tmp_path), "sampler_steps": 2, "lr": 1e-3, "iterations": 120}
    result = create(NAME, arguments).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 20
    assert result.timesteps.tolist() == [400, 100]


def test_private_noise_joins_the_weights(tmp_path):
    victim = make_victim((200,), prediction_type="sample")
    arguments = {"prior": imaginative_prior(tmp_path), "sampler_steps": 2, "lr": 1e-3, "iterations": 80}
    still = create(NAME, arguments | {"hidden_lr": 1e-9}).reconstruct(victim.observation, seed=101)
    result = create(NAME, arguments).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [200]
    assert result.matching_loss < still.matching_loss / 2
    assert victim.psnr(result.images) > 16


def test_the_search_ends_when_noise_is_all_that_is_left_to_match(tmp_path):
    def disturb(update: dict[str, Tensor]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(5)
        return {
            name: value + value.norm() / value.numel() ** 0.5 * torch.randn(value.shape, generator=generator)
            for name, value in update.items()
        }

    victim = make_classification_victim((3,), defend=disturb, known=True)
    arguments = {
        "prior": imaginative_prior(tmp_path),
        "sampler_steps": 2,
        "lr": 1e-3,
        "iterations": 1000,
        "patience": 10,
    }
    assert create(NAME, arguments).reconstruct(victim.observation, seed=101).evaluations < 200


def test_it_ends_when_it_is_solved(tmp_path):
    victim = make_classification_victim((3,))
    arguments = {"prior": imaginative_prior(tmp_path), "sampler_steps": 2, "candidates": 1, "solved_below": 1e-3}
    result = create(NAME, arguments).reconstruct(victim.observation, seed=101)
    assert result.matching_loss <= 1e-3
    assert result.evaluations < 100


def test_the_client_s_network_is_left_as_it_is(known_victim):
    """The global prior is a copy: a tuned original would change the gradient that is matched."""
    problem = double_problem(known_victim.observation)
    prior = load_prior(problem, "global", steps=2)
    with torch.no_grad():
        next(prior.model.parameters()).zero_()
    assert next(problem.model.parameters()).any()


def test_a_classifier_needs_a_prior_of_its_own():
    with pytest.raises(AttackError, match=rf"^attack '{NAME}': prior = 'global' names .* a classifier; allowed: the p"):
        create(NAME).reconstruct(make_classification_victim((3,)).observation, seed=101)


def test_a_prior_of_other_images_is_refused(tmp_path, known_victim):
    prior = save_checkpoint(tmp_path / "size", known_victim, model=MODEL | {"sample_size": 16})
    with pytest.raises(AttackError, match="16x16 pixels, not of 8x8"):
        create(NAME, {"prior": prior}).reconstruct(known_victim.observation, seed=101)


def test_a_learned_embedding_cannot_be_relaxed():
    learned = MODEL | {"time_embedding_type": "learned", "num_train_timesteps": 1000}
    victim = make_victim(model_config=learned)
    with pytest.raises(AttackError, match="timestep = 'search' needs a time embedding of real numbers"):
        create(NAME, SHORT | {"timestep": "search"}).reconstruct(victim.observation, seed=101)


def test_what_does_not_fit_into_memory_says_what_would(monkeypatch, tmp_path):
    """The graphs of all steps of the sampler count, or that of one."""
    seen = make_classification_victim((3,)).observation
    attack, frugal = (
        create(NAME, {"prior": imaginative_prior(tmp_path), "sampler_steps": 500, "recompute": recompute})
        for recompute in (False, True)
    )
    kept, again = attack.further_memory(seen), frugal.further_memory(seen)
    assert kept > 20 * again
    monkeypatch.setattr("attacks.attack.available_memory", lambda _: kept)
    with pytest.raises(AttackError, match=rf"^attack '{NAME}' needs about .*; allowed: .*, or recompute = true$"):
        attack.reconstruct(seen, seed=101)
