"""Candidates: what they do beside L-BFGS."""

import math

import pytest
import torch

from attacks.inversion.problem import InversionProblem
from attacks.residual.minimiser import Candidate, Minimiser
from attacks.residual.unknowns import NoisyImageAndResidual, possible_unknowns
from tests.attacks.conftest import make_victim, true_unknowns
from tests.attacks.residual.candidates import WIDE, candidate_at, matching_of, minimiser_of


@pytest.fixture
def single() -> tuple[NoisyImageAndResidual, list[torch.Tensor]]:
    """The unknowns of a single image, and their true values."""
    victim = make_victim((300,))
    [unknowns] = possible_unknowns(InversionProblem(victim.observation, "cpu"))
    assert isinstance(unknowns, NoisyImageAndResidual)
    return unknowns, true_unknowns(unknowns, victim)


def test_samples_are_put_where_they_belong():
    victim = make_victim((300, 310), model_config=WIDE)
    [unknowns] = possible_unknowns(InversionProblem(victim.observation, "cpu"))
    truth = true_unknowns(unknowns, victim)
    turned = unknowns.permuted(truth, torch.tensor([1, 0]))
    for unknown, back in zip(truth, unknowns.permuted(turned, torch.tensor([1, 0])), strict=True):
        torch.testing.assert_close(back, unknown)
    minimiser = minimiser_of(unknowns.problem, unknowns)
    left = Candidate(minimiser, unknowns, matching_of(unknowns), turned)
    put_right = minimiser.start(unknowns, turned)
    assert put_right.advance(1) < left.advance(1) / 10
    assert len(put_right.losses) == 1


def test_a_candidate_that_nearly_matches_changes_the_metric_and_its_losses_stay_matching_losses(single):
    unknowns, truth = single
    generator = torch.Generator().manual_seed(1)
    near = [value + 0.3 * torch.randn(value.shape, generator=generator) * value.std() for value in truth]
    candidate = candidate_at(unknowns, near)
    while candidate.loss >= candidate.minimiser.metric.below:
        assert candidate.objective is candidate.matching
        candidate.advance(10)
    assert candidate.objective is not candidate.matching
    for _ in range(3):
        before = candidate.loss
        assert candidate.advance(20) == candidate.matching.value(candidate.point) < before
    assert candidate.losses[-1] < 1e-4


def test_a_sample_that_does_not_fit_keeps_the_metric(single, monkeypatch):
    candidate = candidate_at(*single)
    monkeypatch.setattr(candidate, "misfits", lambda: torch.tensor([0.5]))
    assert candidate.advance(5) < candidate.minimiser.metric.below
    assert candidate.objective is candidate.matching
    monkeypatch.undo()
    candidate.advance(5)
    assert candidate.objective is not candidate.matching


@pytest.mark.parametrize("slope", [1.0, float("nan")])
def test_a_metric_that_leads_astray_is_given_up(single, slope, monkeypatch):
    candidate = candidate_at(*single)
    generator = torch.Generator().manual_seed(1)

    def astray(point):
        return torch.tensor(1.0), [slope * torch.randn(value.shape, generator=generator) for value in point]

    monkeypatch.setattr(Minimiser, "in_metric", lambda *_: astray)
    candidate.advance(5)
    assert candidate.objective is astray
    loss, point = candidate.loss, [value.detach().clone() for value in candidate.point]
    assert candidate.advance(10) == loss
    assert all(map(torch.equal, candidate.point, point))
    assert candidate.objective is candidate.matching
    assert not candidate.changes_metric


def test_the_first_stage_gets_a_candidate_that_cost_nothing(single):
    unknowns, _ = single
    candidate = minimiser_of(unknowns.problem, unknowns).begin()
    assert candidate.unknowns is unknowns
    assert candidate.loss == math.inf
    assert not any(value.any() for value in candidate.point)
    assert unknowns.problem.budget.spent == 0
