import pytest
import torch
from scipy import stats

from attacks.labels.soft_counts import round_counts, soft_counts
from tests.attacks.labels.hand_made import draw_weights, make_layer


def test_equal_features_give_exact_counts():
    labels = [0, 0, 0, 2, 4, 4, 4, 4]
    layer = make_layer(draw_weights(5, 6, seed=1), torch.ones(8, 6), labels)
    counts, sensitivity = soft_counts(layer)
    torch.testing.assert_close(counts, torch.tensor([3.0, 0.0, 1.0, 0.0, 4.0]).double())
    assert round_counts(counts, sensitivity)[1] > 5


def test_the_margin_is_that_of_student_s_t():
    counts = torch.tensor([2.05, 0.95, 3.05, 0.95]).double()  # off by 0.05, so that 1/2 is ten times as much
    whole, margin = round_counts(counts, torch.ones(4).double())
    assert whole.tolist() == [2, 1, 3, 1]
    assert margin == pytest.approx(stats.norm.isf(stats.t.sf(10, 3)))
    assert margin < 5  # three degrees of freedom tell little


def test_a_class_that_errors_move_more_needs_more_certainty():
    counts = torch.tensor([2.01] * 20).double()
    even, uneven = torch.ones(20).double(), torch.tensor([1.0] + [0.05] * 19).double()
    assert round_counts(counts, even)[1] > 5 > round_counts(counts, uneven)[1]
