import math

import pytest
import torch

from attacks.attack import AttackError
from attacks.inversion.entry_weights import distance_for
from attacks.inversion.gradient_matching import GradientMatching
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.observation import Defence
from attacks.registry import create
from attacks.residual.attack import Residual
from attacks.residual.local_training import SimulatedTraining
from attacks.residual.sample_diagnostics import FITS
from attacks.residual.unknowns import BatchRun, KnownSpace, PrivateSpace, SpaceRun, expected_residual, spaces
from fl_sim import diffusion
from fl_sim.diffusion import LocalOptimizer
from tests.attacks.conftest import MODEL, Victim, make_victim, summed, true_unknowns
from tests.attacks.finite_differences import assert_derivative, to_double

WIDE = MODEL | {"block_out_channels": [32, 32]}


def matching_of(problem: InversionProblem, space: PrivateSpace | KnownSpace) -> GradientMatching:
    return GradientMatching(problem, space.training_loss, distance_for(problem, balance=1.5))


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_started_at_the_truth_it_stays_there(prediction_type):
    victim = make_victim((80, 600), prediction_type=prediction_type, model_config=WIDE)
    problem = InversionProblem(victim.observation, "cpu")
    [space] = spaces(problem)
    assert torch.equal(space.timesteps, victim.timesteps)
    run = LBFGSRun(matching_of(problem, space), true_unknowns(space, victim))
    assert run.advance(10) < 1e-9
    torch.testing.assert_close(space.images(run.unknowns), victim.images, rtol=0, atol=1e-3)


def test_started_at_the_known_truth_it_stays_there(known_victim):
    problem = InversionProblem(known_victim.observation, "cpu")
    known, private = spaces(problem)
    truths = [known_victim.images / known.image_scale], true_unknowns(private, known_victim)
    for space, truth in zip((known, private), truths, strict=True):
        run = LBFGSRun(matching_of(problem, space), truth)
        assert run.advance(10) < 1e-9
        torch.testing.assert_close(space.images(run.unknowns), known_victim.images, rtol=0, atol=1e-3)


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_it_finds_image_and_timestep(prediction_type):
    victim = make_victim((200,), prediction_type=prediction_type)
    result = create("residual", {"max_evaluations": 600}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 50
    assert result.timesteps.tolist() == [200]
    assert result.matching_loss < 1e-6
    assert result.evaluations < 600


@pytest.mark.parametrize("shown", [lambda observation: observation, summed], ids=["a batch", "a sum of clients"])
def test_it_finds_every_image_of(shown):
    victim = make_victim((600, 80), model_config=WIDE)
    result = create("residual", {"max_evaluations": 1000}).reconstruct(shown(victim.observation), seed=101)
    assert result.timesteps.tolist() == [80, 600]
    assert matched_psnr(victim, result.images) > 40


def test_it_finds_the_image_under_a_fourier_embedding():
    victim = make_victim((200,), model_config=WIDE | {"time_embedding_type": "fourier"})
    result = create("residual", {"max_evaluations": 600}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 50
    assert result.timesteps.tolist() == [200]


def test_dictated_local_steps_are_simulated_in_their_order():
    optimizer = LocalOptimizer(lr=0.1, momentum=0.5)
    victim = make_victim((400, 150), local_steps=2, optimizer=optimizer, model_config=WIDE, known=True)
    result = create("residual", {"max_evaluations": 400}).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [400, 150]
    assert victim.psnr(result.images) > 40


def test_it_uses_what_the_server_dictated():
    victim = make_victim((700, 150), known=True)
    result = create("residual", {"max_evaluations": 300}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 50
    assert result.timesteps.tolist() == [700, 150]


def test_a_single_sgd_step_is_inverted_like_a_gradient():
    victim = make_victim((350,), optimizer=LocalOptimizer(lr=0.5, momentum=0.9))
    result = create("residual", {"max_evaluations": 600}).reconstruct(victim.observation, seed=101)
    assert victim.psnr(result.images) > 40


def root_mean_square(update: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in update.values()]).square().mean().sqrt())


def noisy(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    source, size = torch.Generator().manual_seed(7), 0.1 * root_mean_square(update)
    return {name: value + size * torch.randn(value.shape, generator=source) for name, value in update.items()}


def signs_of(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.sign() for name, value in update.items()}


def clipped(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    norm = torch.cat([value.flatten() for value in update.values()]).norm()
    return {name: value / norm for name, value in update.items()}


def largest(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    threshold = torch.cat([value.flatten() for value in update.values()]).abs().quantile(0.8)
    return {name: value * (value.abs() >= threshold) for name, value in update.items()}


DEFENDED = {
    "noise": (noisy, Defence(noise_std=0.1 * root_mean_square(make_victim((200,)).observation.update)), 25),
    "signs": (signs_of, Defence(signs=True), 25),
    "clip": (clipped, Defence(clip_norm=1.0), 25),
    "top-k": (largest, Defence(sparsified=True), 45),
}


@pytest.mark.parametrize(("defend", "defence", "threshold"), DEFENDED.values(), ids=DEFENDED)
def test_it_matches_through_a_defence_that_the_server_knows(defend, defence, threshold):
    victim = make_victim((200,), defend=defend, defence=defence)
    result = create("residual", {"max_evaluations": 900}).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [200]
    assert victim.psnr(result.images) > threshold


def test_adams_first_step_gives_the_image_away():
    victim = make_victim((350,), optimizer=LocalOptimizer(name="adam", lr=1e-2))
    result = create("residual", {"max_evaluations": 600}).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [350]
    assert victim.psnr(result.images) > 24


def matched_psnr(victim: Victim, images: torch.Tensor) -> float:
    """Of the right one of both orders that two images may come in."""
    return max(victim.psnr(images), victim.psnr(images.flip(0)))


def test_two_local_steps_are_told_apart_and_simulated():
    optimizer = LocalOptimizer(lr=0.1, momentum=0.5)
    victim = make_victim((400, 150), local_steps=2, optimizer=optimizer, model_config=WIDE)
    result = create("residual", {"max_evaluations": 400}).reconstruct(victim.observation, seed=101)
    assert result.timesteps.tolist() == [150, 400]
    assert matched_psnr(victim, result.images) > 35


def test_what_is_wrong_after_the_race_of_orders_is_drawn_anew(monkeypatch):
    victim = make_victim((150, 400), local_steps=2, optimizer=LocalOptimizer(lr=1e-3), model_config=WIDE)
    problem = InversionProblem(victim.observation, "cpu")
    [space] = spaces(problem)
    attack, distance, generator = Residual(), distance_for(problem, balance=1.5), torch.Generator().manual_seed(3)
    x_t, residual = true_unknowns(space, victim)
    wrong = [torch.cat([x_t[:1], -x_t[1:]]), torch.cat([residual[:1], residual[1:].flip(-1)])]
    as_batch = SpaceRun(space, matching_of(problem, space), wrong, attack.history)
    assert as_batch.misfits()[0] < FITS < as_batch.misfits()[1]
    monkeypatch.setattr("attacks.residual.attack.race", lambda runs, *_: runs[0])
    found = attack._simulation(as_batch, distance, generator, max_evaluations=900, below=1e-6)
    assert isinstance(found.matching, SimulatedTraining)
    assert found.misfits().max() < FITS
    assert found.loss <= 1e-6
    assert found.objective is not found.matching  # but the end of it in the metric of attacks/residual/kfac_metric.py


def test_a_hundred_orders_of_steps_keep_to_the_budget():
    victim = make_victim((400, 150, 30, 250, 700), local_steps=5, optimizer=LocalOptimizer(lr=0.01), model_config=WIDE)
    result = create("residual", {"max_evaluations": 60}).reconstruct(victim.observation, seed=101)
    assert sorted(result.timesteps.tolist()) == [30, 150, 250, 400, 700]
    assert result.evaluations < 60 * math.sqrt(5) + 30  # a line search is ended


def test_simulated_from_the_truth_it_stays_there():
    """Momentum's weights, which a batch has in its residuals, are taken out for the steps."""
    optimizer = LocalOptimizer(lr=1e-6, momentum=0.9)  # so small that the weights stay where they are
    victim = make_victim((150, 400), local_steps=2, optimizer=optimizer, model_config=WIDE)
    problem = InversionProblem(victim.observation, "cpu")
    problem.gradient = steps_mean_gradient(victim, weights=(1.9, 1.0))
    [space] = spaces(problem)
    x_t, residual = true_unknowns(space, victim)
    as_batch = residual * (2 * torch.tensor([1.9, 1.0]) / 2.9).reshape(-1, 1, 1, 1)
    distance = distance_for(problem, balance=1.5)
    assert matching_of(problem, space).value([x_t.requires_grad_(), as_batch.requires_grad_()]) < 1e-8
    steps = [torch.tensor([0]), torch.tensor([1])]
    simulated = SimulatedTraining(problem, space.step_loss, steps, distance, space.images)
    unknowns = [value.requires_grad_() for value in space.of_steps([x_t, as_batch], steps)]
    torch.testing.assert_close(unknowns[1], residual)
    assert simulated.value(unknowns) < 1e-6


def steps_mean_gradient(victim: Victim, weights: tuple[float, float]) -> dict[str, torch.Tensor]:
    problem = InversionProblem(victim.observation, "cpu")
    batches = zip(victim.images.split(1), victim.noise.split(1), victim.timesteps.split(1), strict=True)
    gradients = [diffusion.gradient(problem.model, problem.scheduler, *batch) for batch in batches]
    first, second = (weight / sum(weights) for weight in weights)
    return {name: first * gradients[0][name] + second * gradients[1][name] for name in gradients[0]}


def test_of_timesteps_drawn_twice_the_matching_loss_chooses():
    victim = make_victim((300, 300, 700), model_config=WIDE)
    result = Residual(max_evaluations=600).reconstruct(victim.observation, seed=100)
    assert result.timesteps.tolist() == [300, 300, 700]


def without_time_layers(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in update.items() if "time_" not in name}


def test_a_timestep_that_cannot_be_read_off_is_matched():
    victim = make_victim((700,), defend=without_time_layers, model_config=WIDE)
    result = Residual().reconstruct(victim.observation, seed=100)
    assert result.timesteps.tolist() == [700]
    assert victim.psnr(result.images) > 40


def test_a_matched_timestep_that_explains_nothing_is_not_claimed():
    noise = torch.Generator().manual_seed(0)

    def replaced(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: torch.randn(value.shape, generator=noise) for name, value in update.items()}

    result = Residual(max_evaluations=60).reconstruct(make_victim((300,), defend=replaced).observation, seed=100)
    assert result.timesteps.tolist() == [-1]


@pytest.mark.parametrize(("timesteps", "arguments"), [((300, 500), {}), ((300,), {"search_timestep": False})])
def test_timesteps_that_cannot_be_told_are_one_line(timesteps, arguments):
    victim = make_victim(timesteps, defend=without_time_layers, model_config=WIDE)
    with pytest.raises(AttackError, match=r"^timesteps cannot be read off this update \(margin 0.0\)$"):
        Residual(**arguments).reconstruct(victim.observation, seed=100)


def test_the_expected_residual_is_of_the_size_of_the_true_one():
    victim = make_victim((50, 900), prediction_type="sample", model_config=WIDE)
    [space] = spaces(InversionProblem(victim.observation, "cpu"))
    residual = true_unknowns(space, victim)[1] * space.residual_scale / space.expected_residual
    rms = residual.square().mean(dim=(1, 2, 3)).sqrt()
    assert ((rms > 0.5) & (rms < 2)).all()
    assert expected_residual(space.problem, space.timesteps).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
@pytest.mark.parametrize("kind", [PrivateSpace, KnownSpace])
def test_the_derivative_is_the_difference_of_values(kind, prediction_type):
    victim = make_victim((80, 600), prediction_type=prediction_type, known=True)
    problem = InversionProblem(victim.observation, "cpu")
    space = next(space for space in spaces(problem) if isinstance(space, kind))
    to_double(problem)
    for derivative, relative in (("double-backward", 1e-5), ("central", 1e-4), ("one-sided", 1e-2)):
        matching = GradientMatching(problem, space.training_loss, distance_for(problem, balance=1.5), derivative)
        shapes = [tuple(victim.images.shape)] * (2 if kind is PrivateSpace else 1)
        assert_derivative(matching, shapes, relative, step=1e-5)


def test_a_batch_will_do_for_local_steps_where_their_own_difference_is_left():
    victim = make_victim((150, 400), local_steps=2, optimizer=LocalOptimizer(lr=0.1), model_config=WIDE)
    problem = InversionProblem(victim.observation, "cpu")
    [space] = spaces(problem)
    attack, distance = Residual(), distance_for(problem, balance=1.5)
    run = attack._run(space, true_unknowns(space, victim), distance)
    left = run.matching.value(run.unknowns)
    run.losses = [left]
    assert left > 1e-6  # the second step's gradient was taken at other weights
    assert attack._batch_will_do(run, distance)
    run.losses = [10 * left]
    assert not attack._batch_will_do(run, distance)


def test_a_late_sample_starts_with_a_small_residual(monkeypatch):
    sizes = torch.tensor([1.0, 0.04]).view(-1, 1, 1, 1)  # as of a trained model
    monkeypatch.setattr("attacks.residual.unknowns.expected_residual", lambda *_: sizes)
    [space] = spaces(InversionProblem(make_victim((20, 900), model_config=WIDE).observation, "cpu"))
    _, residual = space.noisy_images_and_residuals(space.start(torch.Generator().manual_seed(1), 0.3, 0.5))
    started = residual.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(started, 0.5 * sizes, rtol=0.2, atol=0)


def test_a_batch_run_puts_samples_where_they_belong():
    victim = make_victim((300, 310), model_config=WIDE)
    problem = InversionProblem(victim.observation, "cpu")
    [space] = spaces(problem)
    truth = true_unknowns(space, victim)
    turned = space.moved(truth, torch.tensor([1, 0]))
    for unknown, back in zip(truth, space.moved(turned, torch.tensor([1, 0])), strict=True):
        torch.testing.assert_close(back, unknown)
    runs = [kind(space, matching_of(problem, space), turned, 300) for kind in (SpaceRun, BatchRun)]
    left, moved = [run.advance(1) for run in runs]
    assert moved < left / 10
    assert len(runs[1].losses) == 1


def test_moved_samples_keep_their_images_and_the_size_of_the_residual_for_the_timestep():
    victim = make_victim((20, 300, 600), model_config=WIDE)
    [space] = spaces(InversionProblem(victim.observation, "cpu"))
    unknowns = true_unknowns(space, victim)
    before = space.noisy_images_and_residuals(unknowns)
    after = space.noisy_images_and_residuals(space.moved(unknowns, torch.tensor([1, 2, 0])))
    torch.testing.assert_close(after[0][[1, 2, 0]], before[0])
    sizes = [residual / space.expected_residual for residual in (before[1], after[1])]
    torch.testing.assert_close(sizes[1][[1, 2, 0]], sizes[0])
