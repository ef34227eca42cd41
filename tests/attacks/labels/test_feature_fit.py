from dataclasses import replace

import pytest
import torch

from attacks.labels.feature_fit import feature_equations, fit_labels, fit_rows, hypotheses
from tests.attacks.labels.hand_made import draw_features, draw_weights, make_layer

LABELS = [1, 4, 4]


@pytest.fixture(scope="module")
def layer():
    return make_layer(draw_weights(8, 30, seed=1), draw_features(3, 30, seed=2), LABELS)


def test_the_right_labels_alone_explain_the_gradient(layer):
    equations = feature_equations(layer)
    start = equations.starts[:3]
    assert fit_rows(equations, start, torch.tensor(LABELS))[1] < 0.1
    for wrong in ([1, 1, 4], [1, 4, 5], [2, 4, 4]):
        assert fit_rows(equations, start, torch.tensor(wrong))[1] > 1000


def test_the_counts_are_found_among_hypotheses(layer):
    least = torch.tensor([0, 1, 0, 0, 1, 0, 0, 0])
    likely = torch.tensor([0.9, 1.0, 0.0, 0.0, 1.1, 0.0, 0.0, 0.0])
    counts, margin = fit_labels(layer, least, likely)
    assert counts.tolist() == [0, 1, 0, 0, 2, 0, 0, 0]
    assert margin > 1000


def test_the_jacobian_is_that_of_the_remainder(layer):
    equations, labels = feature_equations(layer), torch.tensor(LABELS)
    rows = equations.starts[:3]
    expected = torch.autograd.functional.jacobian(lambda at: equations.remainder(at, labels), rows).flatten(1)
    torch.testing.assert_close(equations.jacobian(rows, labels), expected)


def test_exchanges_are_changes_of_the_remainder(layer):
    equations = feature_equations(layer)
    rows = equations.starts[:3]
    other = equations.remainder(rows, torch.tensor([0, 4, 4]))
    change = other - equations.remainder(rows, torch.tensor(LABELS))
    torch.testing.assert_close(equations.exchanges(rows, torch.tensor(LABELS))[:, 0], change)


@pytest.mark.parametrize(
    "change",
    [{"samples": 8}, {"one_point": False}, {"counts": False}],
    ids=["as many images as classes", "steps", "scale"],
)
def test_there_are_no_equations_for(layer, change):
    assert feature_equations(replace(layer, **change)) is None


def test_a_sample_that_noise_hides_leaves_no_equations(layer):
    assert feature_equations(replace(layer, std=torch.full_like(layer.std, 0.1))) is None


def test_hypotheses_near_the_estimate_come_first():
    first, *_ = hypotheses(torch.tensor([0, 1, 0]), torch.tensor([0.1, 1.2, 1.9]), 3)
    assert first.tolist() == [1, 2, 2]
    assert list(hypotheses(torch.zeros(100, dtype=torch.int64), torch.zeros(100), 16)) == []
