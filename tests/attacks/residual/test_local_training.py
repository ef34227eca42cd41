import torch

from attacks.inversion.problem import InversionProblem
from attacks.residual.batch_refinement import BatchRefinement
from attacks.residual.local_training import LocalTraining, deal_samples, explained_as_one_batch
from attacks.residual.simulated_training import SimulatedTraining
from attacks.residual.unknowns import possible_unknowns
from fl_sim import diffusion
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import Victim, make_victim, true_unknowns
from tests.attacks.residual.candidates import WIDE, candidate_at

MOST = 120


def test_what_is_wrong_after_the_race_of_orders_is_drawn_anew(monkeypatch):
    victim = make_victim((150, 400), local_steps=2, optimizer=LocalOptimizer(lr=1e-3), model_config=WIDE)
    problem = InversionProblem(victim.observation, "cpu")
    [unknowns] = possible_unknowns(problem)
    x_t, residual = true_unknowns(unknowns, victim)
    wrong = [torch.cat([x_t[:1], -x_t[1:]]), torch.cat([residual[:1], residual[1:].flip(-1)])]
    as_batch = candidate_at(unknowns, wrong, precision=1e-3, seed=6)  # of which the first draws lead to it
    fits_below = as_batch.minimiser.rules.fits_below
    assert as_batch.misfits()[0] < fits_below < as_batch.misfits()[1]
    monkeypatch.setattr("attacks.residual.local_training.race", lambda runs, *_: runs[0])
    budget = problem.budget.of(400)
    found = BatchRefinement().run(LocalTraining().run(as_batch, budget), budget)
    assert isinstance(found.matching, SimulatedTraining)
    assert found.misfits().max() < fits_below
    assert found.loss <= found.minimiser.on_track_below
    assert found.objective is not found.matching  # but the end of it in the K-FAC metric


def test_simulated_from_the_truth_it_stays_there():
    """Momentum's weights, which a batch has in its residuals, are taken out for the steps."""
    optimizer = LocalOptimizer(lr=1e-6, momentum=0.9)  # so small that the weights stay where they are
    victim = make_victim((150, 400), local_steps=2, optimizer=optimizer, model_config=WIDE)
    problem = InversionProblem(victim.observation, "cpu")
    problem.gradient = steps_mean_gradient(victim, weights=(1.9, 1.0))
    [unknowns] = possible_unknowns(problem)
    x_t, residual = true_unknowns(unknowns, victim)
    as_batch = residual * (2 * torch.tensor([1.9, 1.0]) / 2.9).reshape(-1, 1, 1, 1)
    candidate = candidate_at(unknowns, [x_t, as_batch])
    assert candidate.matching.value(candidate.point) < 1e-8
    steps = [torch.tensor([0]), torch.tensor([1])]
    point = [value.requires_grad_() for value in unknowns.as_local_steps([x_t, as_batch], steps)]
    torch.testing.assert_close(point[1], residual)
    assert candidate.minimiser.simulate(unknowns, steps).value(point) < 1e-6


def steps_mean_gradient(victim: Victim, weights: tuple[float, float]) -> dict[str, torch.Tensor]:
    problem = InversionProblem(victim.observation, "cpu")
    batches = zip(victim.images.split(1), victim.noise.split(1), victim.timesteps.split(1), strict=True)
    gradients = [diffusion.gradient(problem.model, problem.scheduler, *batch) for batch in batches]
    first, second = (weight / sum(weights) for weight in weights)
    return {name: first * gradients[0][name] + second * gradients[1][name] for name in gradients[0]}


def test_a_batch_explains_local_steps_where_only_what_it_neglects_is_left():
    victim = make_victim((150, 400), local_steps=2, optimizer=LocalOptimizer(lr=0.1), model_config=WIDE)
    [unknowns] = possible_unknowns(InversionProblem(victim.observation, "cpu"))
    candidate = candidate_at(unknowns, true_unknowns(unknowns, victim))
    left = candidate.matching.value(candidate.point)
    assert left > 1e-6  # the second step's gradient was taken at other weights
    candidate.losses = [left]
    assert explained_as_one_batch(candidate, model_error_factor=2.0)
    candidate.losses = [10 * left]
    assert not explained_as_one_batch(candidate, model_error_factor=2.0)


def test_samples_are_dealt_in_every_way():
    ways = [[step.tolist() for step in way] for way in deal_samples(4, 2, torch.Generator(), MOST)]
    assert len(ways) == 6
    assert [[0, 3], [1, 2]] in ways
    assert len(deal_samples(3, 3, torch.Generator(), MOST)) == 6


def test_no_more_ways_than_can_be_tried():
    ways = deal_samples(32, 4, torch.Generator(), MOST)
    assert len(ways) == MOST
    assert all(sorted(torch.cat(way).tolist()) == list(range(32)) for way in ways)
    assert len({tuple(torch.cat(way).tolist()) for way in ways}) == MOST


def test_of_more_ways_than_are_affordable_some_are_drawn():
    ways = [tuple(torch.cat(way).tolist()) for way in deal_samples(4, 4, torch.Generator(), MOST, affordable=10)]
    assert len(set(ways)) == len(ways) == 10
    assert all(sorted(way) == [0, 1, 2, 3] for way in ways)
    assert ways != [tuple(torch.cat(way).tolist()) for way in deal_samples(4, 4, torch.Generator(), MOST)[:10]]
    assert len(deal_samples(32, 4, torch.Generator(), MOST, affordable=10)) == 10
