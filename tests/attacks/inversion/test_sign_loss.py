import pytest
import torch

from attacks.inversion.sign_loss import sign_distance, sign_floor


def vectors() -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = [
        torch.randn(6, 5, generator=generator, dtype=torch.float64),
        torch.randn(7, generator=generator).double() * 1e-3,
    ]
    return truth, torch.cat([value.reshape(-1) for value in truth])


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_its_derivative_is_that_of_the_value(temperature):
    truth, flat = vectors()
    distance = sign_distance([value.sign() for value in truth], temperature)
    point = (flat + 0.5 * flat.flip(0)).requires_grad_()
    value, derivative = distance(point, flat)
    (expected,) = torch.autograd.grad(value, point)
    torch.testing.assert_close(derivative.detach(), expected)


def test_only_signs_count_and_not_the_scale_of_a_tensor():
    truth, flat = vectors()
    distance = sign_distance([value.sign() for value in truth], 0.01)
    right, _ = distance(flat, flat)
    scaled, _ = distance(torch.cat([truth[0].reshape(-1) * 5, truth[1] * 100]), flat)
    wrong, _ = distance(torch.cat([-truth[0].reshape(-1), truth[1]]), flat)
    torch.testing.assert_close(scaled, right)
    assert float(right) < 1e-2 < 0.3 < float(wrong)


def test_entries_without_a_sign_are_left_out():
    _, flat = vectors()
    signs = flat.sign()
    signs[3] = 0
    distance = sign_distance([signs], 0.1)
    flipped = flat.clone()
    flipped[3] *= -1
    torch.testing.assert_close(distance(flipped, flat)[0], distance(flat, flat)[0])


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_right_signs_end_below_the_floor_and_random_ones_far_above(temperature):
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(5000, generator=generator)
    right, _ = sign_distance([gradient.sign()], temperature)(gradient, gradient)
    random, _ = sign_distance([torch.randn(5000, generator=generator).sign()], temperature)(gradient, gradient)
    assert right < sign_floor(temperature) < random / 5
