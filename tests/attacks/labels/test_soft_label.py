import pytest
import torch

from attacks.inversion.problem import InversionProblem
from attacks.labels.recovery import HiddenLabelsError, recover_labels
from attacks.labels.soft_label import raised_classes, soft_label
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import make_classification_victim


def problem_of(*args, **kwargs) -> InversionProblem:
    return InversionProblem(make_classification_victim(*args, **kwargs).observation, "cpu")


def test_revealed_and_recovered_labels_are_counted():
    for known in (True, False):
        soft = soft_label(problem_of((3, 8, 8, 8), known=known))
        assert soft.tolist() == [0, 0, 0, 0.25, 0, 0, 0, 0, 0.75, 0]


def test_counts_that_cannot_be_told_exactly_are_estimated():
    labels = (0,) * 20 + (1,) * 30 + (2,) * 14
    problem = problem_of(labels, num_classes=3, classifier="ConvNet")
    assert not recover_labels(problem).known
    soft = soft_label(problem)
    assert float(soft.sum()) == pytest.approx(1)
    torch.testing.assert_close(soft, torch.tensor([20.0, 30.0, 14.0]) / 64, atol=0.03, rtol=0)


def test_adams_steps_show_which_classes_they_raise():
    problem = problem_of((3,) * 6, local_steps=3, optimizer=LocalOptimizer(name="adam", lr=1e-3))
    assert soft_label(problem).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_without_a_bias_the_rows_of_the_weights_show_it():
    problem = problem_of((3,), classifier="ConvNet")
    bias = next(name for name in problem.gradient if name.endswith("bias") and len(problem.gradient[name]) == 10)
    del problem.gradient[bias]
    assert int(raised_classes(problem).argmax()) == 3
    problem.gradient.clear()
    with pytest.raises(HiddenLabelsError, match="tells nothing of the last layer"):
        raised_classes(problem)
