"""The most probable image behind a noisy gradient, and what anybody knows of photographs."""

import pytest
import torch
from scipy.fft import idctn

from attacks.inversion.image_prior import natural_image_energy
from attacks.inversion.lbfgs import LBFGSRun
from attacks.inversion.problem import InversionProblem
from attacks.observation import DefenceDisclosure
from attacks.registry import create
from attacks.residual.map_estimate import MapObjective, to_map_problem
from attacks.residual.unknowns import CleanImage, NoisyImageAndResidual, possible_unknowns
from fl_sim.config import DataSettings
from fl_sim.images.sources import list_images
from tests.attacks.conftest import SHAPE, Victim, make_victim, true_unknowns
from tests.attacks.finite_differences import assert_derivative, to_double
from tests.attacks.residual.candidates import matching_of

SHARE = 0.5
"""The noise's norm over the gradient's."""


def noisy_victim(told: bool = True, known: bool = False, clipped: bool = False) -> Victim:
    """Noise of half the norm of what is sent, which is half the gradient where it was clipped."""
    flat = torch.cat([value.flatten() for value in make_victim((200,)).observation.update.values()])
    norm, factor = float(flat.norm()), 0.5 if clipped else 1.0
    deviation = SHARE * factor * norm / len(flat) ** 0.5
    generator = torch.Generator().manual_seed(7)

    def defend(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: factor * v + deviation * torch.randn(v.shape, generator=generator) for n, v in update.items()}

    clip_norm = factor * norm if clipped else None
    defence = DefenceDisclosure(noise_std=deviation, clip_norm=clip_norm) if told else None
    return make_victim((200,), known=known, defend=defend, defence=defence)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_photographs_have_an_energy_of_about_their_number_of_elements_at_any_size(size):
    held = list_images(DataSettings(photographs=("coffee", "hopper"), image_size=size))
    images = held.decode(range(len(held)))
    assert 0.2 < float(natural_image_energy(images)) / images.numel() < 1.5
    noise = images.std() * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert float(natural_image_energy(noise)) > 10 * images.numel()


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, 3, 8, 12), (1, 4, 9, 9)])
def test_the_energy_of_what_the_law_describes_is_the_number_of_elements(shape):
    """Of images with that spectrum, made the other way round: by the inverse of SciPy's DCT."""
    generator = torch.Generator().manual_seed(1)
    count, channels, height, width = shape
    total = 0.0
    for _ in range(200):
        f2 = torch.arange(height)[:, None] ** 2 + torch.arange(width)[None] ** 2
        deviation = (height * width * torch.where(f2 > 0, 1 / f2, 22.0)).sqrt()
        white = torch.randn(count, channels, height, width, generator=generator)
        common = torch.randn(count, 1, height, width, generator=generator)
        colour = white - white.mean(dim=1, keepdim=True)
        coefficients = deviation * (0.0117**0.5 * common + 0.0032**0.5 * colour)
        images = torch.from_numpy(idctn(coefficients.numpy(), axes=(2, 3), norm="ortho"))
        total += float(natural_image_energy(images)) / 200
    assert total == pytest.approx(count * channels * height * width, rel=0.05)


@pytest.mark.parametrize("known", [False, True], ids=["private", "known"])
def test_its_derivative_is_right(known):
    problem = InversionProblem(noisy_victim(known=known).observation, "cpu")
    unknowns = CleanImage(problem) if known else NoisyImageAndResidual(problem, torch.tensor([200]))
    to_double(problem)
    problem.std = {name: value.double() for name, value in problem.std.items()}
    posterior = MapObjective(unknowns, "double-backward")
    assert_derivative(posterior, [(1, *SHAPE)] * (1 if known else 2), relative=1e-4, step=1e-5)


def test_its_value_is_the_matching_loss_and_noise_leaves_what_it_must():
    """At the truth D is the noise's share, and Z D the number of entries."""
    victim = noisy_victim()
    problem = InversionProblem(victim.observation, "cpu")
    [unknowns] = possible_unknowns(problem)
    truth = [unknown.requires_grad_() for unknown in true_unknowns(unknowns, victim)]
    posterior = MapObjective(unknowns, "one-sided")
    assert posterior.value(truth) == pytest.approx(SHARE**2 / (1 + SHARE**2), rel=0.05)
    energy = float(posterior(truth)[0]) - posterior.value(truth)
    expected = float(victim.noise.square().sum() + natural_image_energy(victim.images))
    assert energy == pytest.approx(expected / (victim_entries(problem) * (1 + 1 / SHARE**2)), rel=0.05)


def victim_entries(problem: InversionProblem) -> int:
    return sum(value.numel() for value in problem.gradient.values())


@pytest.mark.parametrize(("known", "clipped"), [(True, False), (False, True)], ids=["known", "private-clipped"])
def test_it_beats_least_squares_where_the_noise_is_known(known, clipped, monkeypatch):
    victim = noisy_victim(known=known, clipped=clipped)
    assert InversionProblem(victim.observation, "cpu").scale_known != clipped
    attack = create("residual", {"max_evaluations": 250})
    probable = attack.reconstruct(victim.observation, seed=101)
    monkeypatch.setattr(InversionProblem, "noisy", False)
    least_squares = attack.reconstruct(victim.observation, seed=101)
    assert victim.psnr(probable.images) > victim.psnr(least_squares.images) + 1
    assert victim.psnr(probable.images) > (33 if known else 25)


def test_it_goes_on_where_least_squares_ends_in_rounding():
    """Small entries of a rounded gradient are precise. Least squares balanced over tensors hardly looks at them."""
    victim = make_victim((200,), dtype="bfloat16")
    [unknowns] = possible_unknowns(InversionProblem(victim.observation, "cpu"))
    generator = torch.Generator().manual_seed(3)
    start = [value + 1e-3 * torch.randn(value.shape, generator=generator) for value in true_unknowns(unknowns, victim)]
    least_squares = LBFGSRun(matching_of(unknowns), start)
    least_squares.advance(40)
    probable = LBFGSRun(MapObjective(unknowns, "one-sided"), least_squares.point)
    probable.advance(60)
    before, after = (victim.psnr((unknowns.images(run.point) + 1) / 2) for run in (least_squares, probable))
    assert after > before + 1


def test_the_estimated_scale_is_the_one_that_fits_best():
    problem = InversionProblem(noisy_victim(clipped=True).observation, "cpu")
    [unknowns] = possible_unknowns(problem)
    point = true_unknowns(unknowns, noisy_victim(clipped=True))
    images = unknowns.images(point)
    torch.testing.assert_close(unknowns.images([point[0], 5 * point[1]]), images, rtol=1e-3, atol=1e-3)
    observed = problem.gradient["conv_in.weight"]
    scaled, point = to_map_problem(unknowns, point)
    assert scaled.problem.scale_known
    torch.testing.assert_close(scaled.images(point), images)
    assert float((observed / scaled.problem.gradient["conv_in.weight"]).mean()) == pytest.approx(0.5, rel=0.1)
    assert not problem.scale_known
    assert torch.equal(problem.gradient["conv_in.weight"], observed)


def test_a_search_that_ended_on_the_wrong_side_estimates_no_scale():
    problem = InversionProblem(noisy_victim(clipped=True).observation, "cpu")
    [unknowns] = possible_unknowns(problem)
    problem.gradient = {name: -value for name, value in problem.gradient.items()}
    same, _ = to_map_problem(unknowns, true_unknowns(unknowns, noisy_victim(clipped=True)))
    assert same is unknowns
    assert not problem.scale_known


@pytest.mark.parametrize("told", [True, False])
def test_only_where_noise_is_known_anything_is_more_probable(told):
    assert InversionProblem(noisy_victim(told).observation, "cpu").noisy == told
