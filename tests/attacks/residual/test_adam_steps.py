import pytest
import torch
from torch import Tensor

from attacks.inversion.adam_steps import step_problems
from attacks.inversion.problem import InversionProblem
from attacks.residual import Residual
from attacks.residual.adam_steps import AdamSteps, joined_point, side_by_side
from attacks.residual.minimiser import Candidate
from attacks.residual.unknowns import NoisyImageAndResidual, possible_unknowns
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import Victim, make_victim, true_unknowns
from tests.attacks.residual.candidates import candidate_at, minimiser_of

ADAM = LocalOptimizer(name="adam", lr=1e-3)


@pytest.fixture(scope="module")
def victim() -> Victim:
    return make_victim((150, 400), local_steps=2, optimizer=ADAM)


def of_step(victim: Victim, step: int) -> Victim:
    chosen = slice(step, step + 1)
    return Victim(victim.observation, victim.images[chosen], victim.noise[chosen], victim.timesteps[chosen])


def found_steps(problem: InversionProblem, victim: Victim, error: float) -> list[Candidate]:
    """Candidates of both steps' signs, at the truth but for a relative error."""
    generator, candidates = torch.Generator().manual_seed(0), []
    for step, part in enumerate(step_problems(problem)):
        [unknowns] = possible_unknowns(part)
        truth = true_unknowns(unknowns, of_step(victim, step))
        noise = [torch.randn(value.shape, generator=generator) for value in truth]
        point = [value + error * value.std() * n for value, n in zip(truth, noise, strict=True)]
        candidates.append(candidate_at(unknowns, point))
    return candidates


def joined_candidate(victim: Victim, error: float, scale: float) -> tuple[Candidate, list[Tensor]]:
    """A candidate for both steps at a relative error, with residuals of a wrong scale; and the point of the truth."""
    problem = InversionProblem(victim.observation, "cpu")
    unknowns = NoisyImageAndResidual(problem, victim.timesteps)
    joined = AdamSteps().join(minimiser_of(problem, unknowns), unknowns, found_steps(problem, victim, error=0.0))
    parts = [c.unknowns.noisy_images_and_residuals(c.point) for c in found_steps(problem, victim, error=0.0)]
    truth = unknowns.point_of(*(torch.cat(values) for values in zip(*parts, strict=True)))
    generator = torch.Generator().manual_seed(0)
    noisy = [value + error * value.std() * torch.randn(value.shape, generator=generator) for value in truth]
    joined.move_to([noisy[0], scale * noisy[1]])
    return joined, truth


@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_eps_shows_the_scale_of_the_residuals(victim, scale):
    joined, truth = joined_candidate(victim, error=0.0, scale=scale)
    found = AdamSteps()._begin_round(joined, 0.3, first=False)
    torch.testing.assert_close(found.point[1].detach(), truth[1], rtol=2e-2, atol=0)
    assert torch.equal(found.point[0], joined.point[0])


def test_the_scale_stays_while_the_images_are_far_from_found(victim):
    joined, _ = joined_candidate(victim, error=1e-2, scale=0.8)
    found = AdamSteps()._begin_round(joined, 0.3, first=False)
    assert torch.equal(found.point[1], joined.point[1])


def test_both_steps_are_matched_together(victim):
    joined, truth = joined_candidate(victim, error=3e-3, scale=0.9)
    result = AdamSteps(rounds=(1.0,)).run(joined, joined.minimiser.problem.budget.of(60))
    before, after = ((point[0] - truth[0]).norm() for point in (joined.point, result.point))
    assert after < before / 2
    assert result.outcome().timesteps.tolist() == [150, 400]


def test_dictated_steps_are_joined_by_their_images():
    known = make_victim((150, 400), local_steps=2, optimizer=ADAM, known=True)
    problem = InversionProblem(known.observation, "cpu")
    clean = possible_unknowns(problem)[0]
    parts = [possible_unknowns(part)[0] for part in step_problems(problem)]
    steps = [candidate_at(u, u.point_of_images(known.images[i : i + 1])) for i, u in enumerate(parts)]
    torch.testing.assert_close(clean.images(joined_point(clean, steps)), known.images)


def test_steps_that_cannot_be_simulated_stand_side_by_side():
    clipped = LocalOptimizer(name="adam", lr=1e-3, max_grad_norm=0.1)
    victim = make_victim((150, 400), local_steps=2, optimizer=clipped)
    result = Residual(max_evaluations=12).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [150, 400]
    assert result.images.shape == victim.images.shape
    found = found_steps(InversionProblem(victim.observation, "cpu"), victim, error=0.0)
    assert side_by_side(found).matching_loss == pytest.approx(sum(c.outcome().matching_loss for c in found) / 2)
