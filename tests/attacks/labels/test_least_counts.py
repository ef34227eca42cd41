from dataclasses import replace

import pytest
import torch

from attacks.labels.least_counts import least_counts
from tests.attacks.labels.hand_made import draw_features, make_layer


def even(classes: int, size: int = 2) -> torch.Tensor:
    """Weights of a layer to which every class is as likely as another."""
    return torch.zeros(classes, size + 1)


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        (3, [1], [0, 1, 0]),  # db = (1/3, -2/3, 1/3)
        (4, [2, 2], [0, 0, 2, 0]),  # -N db_2 = 2 - 2/4, rounded up
        (4, [0, 3], [1, 0, 0, 1]),
        (10, [5] * 8 + [6] * 2, [0, 0, 0, 0, 0, 7, 1, 0, 0, 0]),  # -N db = 8 - 1 and 2 - 1, rounding apart
    ],
)
def test_hand_computed_counts(classes, labels, expected):
    found = least_counts(make_layer(even(classes), torch.zeros(len(labels), 2), labels), margin=5)
    assert found.counts.tolist() == expected


def test_a_negative_weight_entry_proves_what_the_bias_does_not_show():
    weights = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # the second sample has p_0 = 1 - 2 exp(-9), and label 1
    layer = make_layer(weights, features, [0, 1])
    assert layer.bias_gradient[0] > 0
    assert least_counts(layer, 5).counts.tolist() == [1, 1, 0]
    signed = replace(layer, features=-layer.features)
    assert least_counts(signed, 5).counts.tolist() == [0, 1, 0]


def test_where_samples_weigh_differently_a_label_is_proven_once():
    layer = make_layer(even(4), torch.zeros(3, 2), [2, 2, 2], counts=False)
    assert least_counts(layer, 5).counts.tolist() == [0, 0, 1, 0]


def test_noise_hides_what_is_smaller():
    features = draw_features(2, 20, seed=1)
    clear, hidden = (make_layer(even(4, 20), features, [0, 3], noise) for noise in (0.01, 0.3))
    assert least_counts(clear, 5).counts.tolist() == [1, 0, 0, 1]
    assert least_counts(hidden, 5).counts.tolist() == [0, 0, 0, 0]
