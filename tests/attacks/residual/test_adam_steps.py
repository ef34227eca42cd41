import pytest
import torch

from attacks.inversion.adam_steps import step_problems
from attacks.inversion.problem import InversionProblem
from attacks.residual import Residual
from attacks.residual.adam_steps import AdamSteps, joined_point, side_by_side
from attacks.residual.unknowns import NoisyImageAndResidual, possible_unknowns
from fl_sim.diffusion import LocalOptimizer
from tests.attacks.conftest import Victim, make_victim, true_unknowns
from tests.attacks.residual.candidates import candidate_at, minimiser_of

ADAM = LocalOptimizer(name="adam", lr=1e-3)


@pytest.fixture(scope="module")
def victim() -> Victim:
    return make_victim((150, 400), local_steps=2, optimizer=ADAM)


def of_step(victim: Victim, step: int) -> Victim:
    chosen = slice(step, step + 1)
    return Victim(victim.observation, victim.images[chosen], victim.noise[chosen], victim.timesteps[chosen])


def found_steps(problem: InversionProblem, victim: Victim, error: float):
    """Candidates of both steps' signs, at the truth but for a relative error."""
    generator, candidates = torch.Generator().manual_seed(0), []
    for step, part in enumerate(step_problems(problem)):
        [unknowns] = possible_unknowns(part)
        truth = true_unknowns(unknowns, of_step(victim, step))
        noise = [torch.randn(value.shape, generator=generator) for value in truth]
        point = [value + error * value.std() * n for value, n in zip(truth, noise, strict=True)]
        candidates.append(candidate_at(unknowns, point))
    return candidates


def test_matching_both_steps_together_recovers_images_and_scale(victim):
    problem = InversionProblem(victim.observation, "cpu")
    unknowns = NoisyImageAndResidual(problem, victim.timesteps)
    stage = AdamSteps(rounds=(1.0, 0.3))
    joined = stage.join(minimiser_of(problem, unknowns), unknowns, found_steps(problem, victim, error=1e-4))
    before = victim.psnr((joined.matching.images(joined.point) + 1) / 2)
    assert before < 36  # eps has not shown the scale of the residuals yet
    result = stage.run(joined, problem.budget.of(100)).outcome()
    assert victim.psnr((result.images + 1) / 2) > 45
    assert result.timesteps.tolist() == [150, 400]
    assert problem.budget.spent < 110


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
