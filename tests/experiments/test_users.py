import pytest
import torch
from torch import nn

from experiments.users import Users, first, rate_interval


class Corners(nn.Module):
    """A classifier of two-pixel images whose features are the pixels, and whose classes are the larger of the two."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 2, bias=False)
        self.last.weight.data = torch.eye(2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(images.flatten(1))


def images(*pixels: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(pixels).reshape(-1, 1, 1, 2)


USERS = Users([images((0, 1), (0, 0.5)), images((1, 0), (1, 0.2)), images((0.5, 0.5))], [1, 0, 0], Corners())


def test_a_reconstruction_is_judged_by_hand() -> None:
    judged = USERS.judge(0, images((0, 0.75)))
    assert judged["by_features"] is judged["by_pixels"] is judged["class_named"] is True
    assert judged["to_own_mean"] == pytest.approx(0)
    assert judged["to_own_nearest"] == pytest.approx(0.5)  # features are those of [-1, 1]
    others = [2 * (1 + 0.65**2) ** 0.5, 2 * (0.5**2 + 0.25**2) ** 0.5]
    assert judged["to_others_mean"] == pytest.approx(min(others))  # torch's median of two is the lower one
    assert judged["psnr"] > 100
    wrong = USERS.judge(1, images((0, 0.75)))
    assert wrong["by_features"] is wrong["by_pixels"] is wrong["class_named"] is False
    assert wrong["psnr"] == pytest.approx(-10 * torch.tensor((1 + 0.65**2) / 2).log10().item(), rel=1e-5)


def test_of_several_images_the_nearest_counts() -> None:
    judged = USERS.judge(1, images((0.5, 0.4), (1, 0.1)))
    assert judged["by_features"] is True
    assert judged["to_own_mean"] == pytest.approx(0, abs=1e-6)
    assert USERS.judge(1, images((0.5, 0.5), (0.5, 0.45)))["by_features"] is False


def test_who_cannot_tell_users_apart_identifies_nobody() -> None:
    assert not first(torch.tensor([1.0, 1.0, 1.0]), 2)
    same = Users([images((0.0, 1.0))] * 3, [1, 1, 1], Corners())
    assert not any(same.judge(user, images((0.0, 1.0)))["by_features"] for user in range(3))


def test_the_interval_is_wilsons() -> None:
    z, n, p = 1.959964, 20, 0.4
    centre, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)]
    assert list(rate_interval(8, 20)) == pytest.approx(expected, rel=1e-5)
    assert rate_interval(0, 10)[0] == 0
    assert rate_interval(0, 10)[1] == pytest.approx(0.2775, abs=1e-3)
