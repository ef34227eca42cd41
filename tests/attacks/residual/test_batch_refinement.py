from dataclasses import replace
from typing import Any

import pytest
import torch

from attacks.inversion.budget import Budget
from attacks.inversion.problem import InversionProblem
from attacks.residual import batch_refinement
from attacks.residual.batch_refinement import BatchRefinement
from attacks.residual.minimiser import Candidate, Minimiser
from attacks.residual.sample_diagnostics import sample_misfits, unexplained_energy
from attacks.residual.unknowns import NoisyImageAndResidual, possible_unknowns
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import make_victim, psnr, true_unknowns
from tests.attacks.residual.candidates import WIDE, minimiser_of

VICTIM = make_victim((120, 600), model_config=WIDE)
SECOND = torch.tensor([False, True])
STAGE = BatchRefinement()


def start(victim=VICTIM, scales=((0.3, 0.3),), seed: int = 1, **changes: Any) -> Candidate:
    """A random start of the two samples."""
    [unknowns] = possible_unknowns(InversionProblem(victim.observation, "cpu"))
    minimiser = minimiser_of(unknowns.problem, unknowns, seed=seed, starts=scales, **changes)
    return minimiser.draw(unknowns, (0.3, 0.3))


def budget_of(candidate: Candidate, evaluations: int) -> Budget:
    return candidate.minimiser.problem.budget.more(evaluations)


def first_right(candidate: Candidate) -> Candidate:
    """The first sample's true unknowns, and fresh ones for the second."""
    truth = true_unknowns(candidate.unknowns, VICTIM)
    fresh = candidate.unknowns.draw(candidate.minimiser.generator, 0.05, 0.05)
    chosen = SECOND.view(-1, 1, 1, 1)
    point = [torch.where(chosen, new, old) for new, old in zip(fresh, truth, strict=True)]
    return candidate.minimiser.start(candidate.unknowns, point)


def alone(candidate: Candidate, free: torch.Tensor, evaluations: int = 100) -> list[torch.Tensor] | None:
    vectors = candidate.sample_vectors()
    return STAGE._search_alone(candidate, candidate.point, free, vectors, budget_of(candidate, evaluations))


def misfits_are(monkeypatch, *values):
    monkeypatch.setattr(batch_refinement, "sample_misfits", lambda *_: torch.tensor(values))


def nobody_searches(monkeypatch):
    monkeypatch.setattr(Minimiser, "run_until_stalled", lambda *_: None)


def test_samples_that_fit_are_not_drawn_anew(monkeypatch):
    candidate = start(precision=1e-12)
    candidate.advance(5)
    budget = budget_of(candidate, 30)
    misfits_are(monkeypatch, 1e-3, 1e-6)
    monkeypatch.setattr(BatchRefinement, "_redraw", lambda *_: pytest.fail("drawn anew"))
    monkeypatch.setattr(batch_refinement, "deflation_error", lambda *_: 1.0)
    assert STAGE.run(candidate, budget) is candidate
    assert budget.left == 0


def test_a_batch_that_explains_local_steps_is_not_searched_on(monkeypatch):
    victim = make_victim((120, 600), local_steps=2, optimizer=LocalOptimizer(lr=0.1), model_config=WIDE)
    candidate = start(victim)
    misfits_are(monkeypatch, 1e-3, 1e-6)
    nobody_searches(monkeypatch)
    monkeypatch.setattr(batch_refinement, "explained_as_one_batch", lambda found, _: found is candidate)
    for further in ("_redraw", "_refine"):
        monkeypatch.setattr(BatchRefinement, further, lambda *_: pytest.fail("searched on"))
    assert STAGE.run(candidate, budget_of(candidate, 100)) is candidate


@pytest.mark.parametrize("on_track", [True, False])
def test_a_batch_that_gets_no_further_is_drawn_anew_unless_it_is_on_track(monkeypatch, on_track):
    candidate = start()
    candidate.minimiser = replace(candidate.minimiser, precision=1e-12, on_track_below=1e-1 if on_track else 1e-3)
    candidate.losses, drawn = [1e-2], []
    misfits_are(monkeypatch, 1e-3, 1e-6)
    nobody_searches(monkeypatch)
    monkeypatch.setattr(BatchRefinement, "_redraw", lambda _, found, *__: drawn.append(1) or found)
    STAGE.run(candidate, budget_of(candidate, 20))
    assert bool(drawn) == (not on_track)


def test_every_scale_is_drawn_anew_by_both_errors(monkeypatch):
    candidate = start(scales=((0.3, 0.3), (1.0, 1.0)))
    drawn = []
    nobody_searches(monkeypatch)
    monkeypatch.setattr(BatchRefinement, "_redraw", lambda _, found, *rest: drawn.append(rest[3:]) or found)
    STAGE.run(candidate, budget_of(candidate, 4))
    scales = candidate.minimiser.start_scales
    assert drawn == [(pair, error) for pair in scales for error in (sample_misfits, unexplained_energy)]


def test_what_is_right_stays_while_the_others_are_searched_for():
    candidate = first_right(start())
    point = alone(candidate, SECOND, evaluations=10)
    for now, before in zip(point, candidate.point, strict=True):
        assert torch.equal(now[0], before[0])
        assert not torch.equal(now[1], before[1])


def test_nothing_is_searched_for_alone_beside_what_is_wrong():
    candidate = start()
    assert alone(candidate, SECOND) is None
    assert alone(first_right(candidate), torch.tensor([True, True])) is None


def test_the_wrong_sample_is_drawn_anew_and_found(monkeypatch):
    candidate = first_right(start())
    fresh, scales = NoisyImageAndResidual.draw, []
    monkeypatch.setattr(BatchRefinement, "_search_together", lambda _, __, point, *___: point)
    monkeypatch.setattr(NoisyImageAndResidual, "draw", lambda *args: scales.append(args[2:]) or fresh(*args))
    vectors, budget = candidate.sample_vectors(), budget_of(candidate, 400)
    point = STAGE._redraw(candidate, vectors, budget, 0.0, (0.05, 0.05), sample_misfits)
    assert scales == [(0.05, 0.05)]
    assert torch.equal(point[0][0], candidate.point[0][0])
    assert psnr((candidate.unknowns.images(point)[1] + 1) / 2, (VICTIM.images[1] + 1) / 2) > 35


def test_two_samples_are_found():
    candidate = start(scales=((0.05, 0.05),), seed=7)  # of which the first draws lead to them
    found = STAGE.run(candidate, budget_of(candidate, 500))
    assert found.loss <= found.minimiser.on_track_below
    assert psnr((found.unknowns.images(found.point) + 1) / 2, (VICTIM.images + 1) / 2) > 35
