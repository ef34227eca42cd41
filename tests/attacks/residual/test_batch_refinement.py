from dataclasses import replace
from functools import partial

import pytest
import torch

from attacks.inversion.entry_weights import distance_for
from attacks.inversion.problem import InversionProblem
from attacks.residual.attack import Residual
from attacks.residual.batch_refinement import BatchSearch
from attacks.residual.sample_diagnostics import sample_misfits, unexplained
from attacks.residual.unknowns import PrivateSpace, SpaceRun, spaces
from tests.attacks.conftest import MODEL, make_victim, psnr, true_unknowns

WIDE = MODEL | {"block_out_channels": [32, 32]}
VICTIM = make_victim((120, 600), model_config=WIDE)
SECOND = torch.tensor([False, True])


def searching(max_evaluations: int, starts=((0.3, 0.3),)) -> tuple[SpaceRun, BatchSearch]:
    """A random start of the two samples, and a search from there."""
    problem = InversionProblem(VICTIM.observation, "cpu")
    [space] = spaces(problem)
    source = torch.Generator().manual_seed(1)
    rerun = partial(Residual()._run, space, distance=distance_for(problem, balance=1.5))
    search = BatchSearch(rerun, source, starts, 1.5, "one-sided", max_evaluations, goal=0.0)
    return rerun(space.start(source, 0.3, 0.3)), search


def first_right(search: BatchSearch, found: SpaceRun) -> SpaceRun:
    """The first sample's true unknowns, and fresh ones for the second."""
    truth = true_unknowns(found.space, VICTIM)
    fresh = found.space.start(search.generator, 0.05, 0.05)
    chosen = SECOND.view(-1, 1, 1, 1)
    return search.rerun([torch.where(chosen, new, old) for new, old in zip(fresh, truth, strict=True)])


def misfits_are(monkeypatch, *values):
    monkeypatch.setattr(batch_search, "sample_misfits", lambda *_: torch.tensor(values))


def test_samples_that_fit_are_not_drawn_anew(monkeypatch):
    found, search = searching(max_evaluations=100)
    found.advance(5)
    misfits_are(monkeypatch, 1e-3, 1e-6)
    monkeypatch.setattr(BatchSearch, "_redrawn", lambda *_: pytest.fail("drawn anew"))
    monkeypatch.setattr(batch_search, "spoiled", lambda *_: 1.0)
    assert search.search(found, found_below=0.0) is found
    assert found.space.problem.evaluations >= 100


def test_a_batch_that_is_enough_is_not_searched_on(monkeypatch):
    found, search = searching(max_evaluations=100)
    misfits_are(monkeypatch, 1e-3, 1e-6)
    monkeypatch.setattr(batch_search, "search_on", lambda *_: None)
    for further in ("_redrawn", "_further"):
        monkeypatch.setattr(BatchSearch, further, lambda *_: pytest.fail("searched on"))
    assert search.search(found, found_below=0.0, enough=lambda run: run is found) is found


@pytest.mark.parametrize("found_below", [1.0, 1e-3])
def test_a_batch_that_gets_no_further_is_drawn_anew_unless_it_is_found(monkeypatch, found_below):
    found, search = searching(max_evaluations=100)
    found.losses, drawn = [1e-2], []
    misfits_are(monkeypatch, 1e-3, 1e-6)
    monkeypatch.setattr(batch_search, "search_on", lambda *_: None)
    monkeypatch.setattr(BatchSearch, "_redrawn", lambda _, found, *__: drawn.append(1) or found)
    search.search(found, found_below)
    assert bool(drawn) == (found_below < 1e-2)


def test_every_scale_is_drawn_anew_by_both_ways_to_be_wrong(monkeypatch):
    found, search = searching(max_evaluations=0, starts=((0.3, 0.3), (1.0, 1.0)))
    drawn = []
    monkeypatch.setattr(batch_search, "search_on", lambda *_: None)
    monkeypatch.setattr(BatchSearch, "_redrawn", lambda _, found, __, *draw: drawn.append(draw) or found)
    search = replace(search, max_evaluations=found.space.problem.evaluations + 4)
    search.search(found, found_below=0.0)
    assert drawn == [(scales, way) for scales in search.starts for way in (sample_misfits, unexplained)]


def test_what_is_right_stays_while_the_others_are_searched_for():
    found, search = searching(max_evaluations=100)
    found = first_right(search, found)
    unknowns = search._alone(found, found.unknowns, SECOND, found.sample_vectors())
    for now, before in zip(unknowns, found.unknowns, strict=True):
        assert torch.equal(now[0], before[0])
        assert not torch.equal(now[1], before[1])


def test_nothing_is_searched_for_alone_beside_what_is_wrong():
    found, search = searching(max_evaluations=200)
    assert search._alone(found, found.unknowns, SECOND, found.sample_vectors()) is None
    right = first_right(search, found)
    everything = torch.tensor([True, True])
    assert search._alone(right, right.unknowns, everything, right.sample_vectors()) is None


def test_the_wrong_sample_is_drawn_anew_and_found(monkeypatch):
    found, search = searching(max_evaluations=400)
    found = first_right(search, found)
    monkeypatch.setattr(BatchSearch, "_together", lambda _, start, __: start)
    fresh, scales = PrivateSpace.start, []
    monkeypatch.setattr(PrivateSpace, "start", lambda *args: scales.append(args[2:]) or fresh(*args))
    start = search._redrawn(found, found.sample_vectors(), (0.05, 0.05), sample_misfits)
    assert scales == [(0.05, 0.05)]
    assert torch.equal(start[0][0], found.unknowns[0][0])
    assert psnr((found.space.images(start)[1] + 1) / 2, (VICTIM.images[1] + 1) / 2) > 35


def test_two_samples_are_found():
    found, search = searching(max_evaluations=800, starts=((0.05, 0.05),))
    found = replace(search, goal=1e-7).search(found, found_below=1e-7)
    assert found.loss <= 1e-7
    assert isinstance(found.space, PrivateSpace)
    assert psnr((found.space.images(found.unknowns) + 1) / 2, (VICTIM.images + 1) / 2) > 35
