import math

import pytest
import torch
from torch import nn

from experiments.inversion_metrics import (
    among_largest,
    best_psnr,
    coverage_and_density,
    evaluate,
    frechet_distance,
    image_figures,
    nearest_distances,
)


def test_a_label_is_among_the_k_largest_logits_or_not() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0], [0.0, 1.0, 2.0]])
    labels = torch.tensor([0, 1, 0, 0])
    found = [among_largest(logits, labels, k).tolist() for k in (1, 2, 3, 5)]
    assert found == [[True, False, False, False], [True, True, True, False], [True] * 4, [True] * 4]


def test_the_nearest_private_image_of_the_same_class_counts() -> None:
    private, classes = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]]), torch.tensor([0, 0, 1])
    found, labels = torch.tensor([[3.0, 3.0], [1.0, 0.0], [1.0, 2.0]]), torch.tensor([0, 0, 1])
    assert nearest_distances(found, labels, private, classes).tolist() == pytest.approx([1.0, 1.0, 4.0])


def test_the_frechet_distance_of_lines_is_that_of_their_normal_distributions() -> None:
    """In one dimension it is (m1 - m2)^2 + (s1 - s2)^2."""
    first, second = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0], [9.0]])
    assert frechet_distance(first, second) == pytest.approx((1 - 5) ** 2 + (math.sqrt(2) - 4) ** 2)


def test_the_frechet_distance_of_independent_dimensions_is_their_sum_and_that_of_equal_sets_is_0() -> None:
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    stretched = corners * torch.tensor([3.0, 1.0]) + torch.tensor([0.0, 5.0])
    deviation = math.sqrt(4 / 3)
    assert frechet_distance(corners, stretched) == pytest.approx((2 * deviation) ** 2 + 25)
    assert frechet_distance(corners, corners.flip(0)) == pytest.approx(0, abs=1e-9)


def test_coverage_and_density_count_balls() -> None:
    """Private points 0, 1, 3, 7 and k = 1: balls of radius 1, 1, 2, 4, borders included."""
    private = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    coverage, density = coverage_and_density(private, torch.tensor([[0.5], [20.0]]), k=1)
    assert (coverage, density) == (0.5, 1.0)
    # 2 lies in the balls of 1 and 3; 4.5 in those of 3 and 7.
    assert coverage_and_density(private, torch.tensor([[2.0], [4.5]]), k=1) == (0.75, 2.0)


def test_psnr_is_against_the_nearest_of_the_class() -> None:
    private = torch.tensor([0.0, 0.5, 0.9])[:, None, None, None].expand(3, 1, 2, 2)
    images = torch.tensor([0.4, 0.4])[:, None, None, None].expand(2, 1, 2, 2)
    found = best_psnr(images, torch.tensor([0, 1]), private, torch.tensor([0, 0, 1]))
    assert found.tolist() == pytest.approx([20.0, -10 * math.log10(0.25)], abs=1e-5)


class Brightness(nn.Module):
    """Tells dark from bright; ``threshold`` is where, in [-1, 1]."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.last = nn.Linear(1, 2)
        with torch.no_grad():
            self.last.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.last.bias.copy_(torch.tensor([threshold, -threshold]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(images.mean((1, 2, 3))[:, None])


def grey(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(len(values), 1, 2, 2)


def test_every_figure_is_that_of_the_evaluator_but_for_the_attacked_classifiers_own() -> None:
    private, classes = grey(0.0, 0.1, 0.2, 0.25, 0.8, 0.85, 0.9, 1.0), torch.tensor([0] * 4 + [1] * 4)
    images, labels = grey(0.2, 0.6, 0.9, 0.4), torch.tensor([0, 0, 1, 1])
    found = evaluate(images, labels, private, classes, target=Brightness(0.6), evaluator=Brightness(0.0))
    assert found["top1"] == 0.5
    assert found["top5"] == 1.0
    assert found["target_top1"] == 0.75  # takes 0.6 and 0.4, brightness 0.2 and -0.2, for dark
    nearest = [0.0, 0.7**2, 0.0, 0.8**2]  # features are brightness in [-1, 1], twice that in [0, 1]
    assert found["knn_all"] == pytest.approx(sum(nearest) / 4, abs=1e-6)
    assert found["knn_successes"] == pytest.approx(0, abs=1e-6)
    assert 0 < found["coverage"] <= 1


def test_without_any_success_there_is_no_distance_of_successes() -> None:
    private, classes = grey(0.0, 0.1, 0.2, 0.25, 0.8, 0.85, 0.9, 1.0), torch.tensor([0] * 4 + [1] * 4)
    found = evaluate(grey(0.9, 0.1), torch.tensor([0, 1]), private, classes, Brightness(0.0), Brightness(0.0))
    assert found["top1"] == 0
    assert found["knn_successes"] is None


def test_every_image_has_figures_of_its_own_and_none_to_private_images_that_are_not_there() -> None:
    private, classes = grey(0.0, 0.2), torch.tensor([0, 0])
    images, labels = grey(0.2, 0.6, 0.9), torch.tensor([0, 0, 1])
    found = image_figures(images, labels, private, classes, target=Brightness(0.6), evaluator=Brightness(0.0))
    assert found["evaluator_top1"].tolist() == [True, False, True]
    assert found["evaluator_top5"].tolist() == [True] * 3
    # The attacked classifier's logits are 0.6 - b and b - 0.6 of brightness b in [-1, 1].
    assert found["target_probability"].tolist() == pytest.approx([_sigmoid(2.4), _sigmoid(0.8), _sigmoid(0.4)])
    assert found["knn_distance"][:2].tolist() == pytest.approx([0, 0.8**2], abs=1e-6)
    assert found["psnr"][1].item() == pytest.approx(-20 * math.log10(0.4), abs=1e-4)
    assert found["knn_distance"][2].isnan()
    assert found["psnr"][2].isnan()


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
