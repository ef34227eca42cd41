"""Labels of clients' updates, from the Observation to the answer: exact or unknown."""

import pytest
import torch

from attacks.inversion.problem import InversionProblem
from attacks.labels.recovery import HiddenLabelsError, RecoveredLabels, labels_behind, labels_for_search, recover_labels
from attacks.observation import DefenceDisclosure
from fl_sim.network import LocalOptimizer
from tests.attacks.conftest import make_classification_victim, summed
from tests.attacks.labels.hand_made import draw_features, draw_weights, make_layer

Update = dict[str, torch.Tensor]


def recover(labels: tuple[int, ...], **facts) -> RecoveredLabels:
    return recover_labels(InversionProblem(make_classification_victim(labels, **facts).observation, "cpu"))


@pytest.mark.parametrize("classifier", ["LeNet", "ConvNet", "ResNet"])
@pytest.mark.parametrize("labels", [(7,), (2, 5), (4, 4, 9)])
def test_labels_are_exact(classifier, labels):
    recovered = recover(labels, classifier=classifier)
    assert recovered.labels.tolist() == sorted(labels)
    assert recovered.margin > 1000


def test_a_sum_of_clients_is_a_batch():
    observation = summed(make_classification_victim((2, 5), classifier="ConvNet").observation)
    assert recover_labels(InversionProblem(observation, "cpu")).labels.tolist() == [2, 5]


def scaled(update: Update) -> Update:
    return {name: value / 3 for name, value in update.items()}


def signs(update: Update) -> Update:
    return {name: value.sign() for name, value in update.items()}


def noisy(update: Update, std: float = 1e-3) -> Update:
    generator = torch.Generator().manual_seed(5)
    return {name: value + std * torch.randn(value.shape, generator=generator) for name, value in update.items()}


CLIPPED = DefenceDisclosure(clip_norm=1e-3)
SIGNS, NOISY = DefenceDisclosure(signs=True), DefenceDisclosure(noise_std=1e-3)


@pytest.mark.parametrize(
    ("defend", "defence"),
    [(scaled, CLIPPED), (signs, SIGNS), (noisy, NOISY), (noisy, None)],
    ids=["clipped", "signs", "noise", "noise of which nobody tells"],
)
def test_distinct_labels_are_told_through(defend, defence):
    recovered = recover((3, 8), classifier="ConvNet", defend=defend, defence=defence)
    assert recovered.labels.tolist() == [3, 8]


@pytest.mark.parametrize(("defend", "defence"), [(scaled, CLIPPED), (signs, SIGNS)], ids=["clipped", "signs"])
def test_without_a_scale_nothing_is_counted(defend, defence):
    recovered = recover((3, 3, 8), classifier="ConvNet", defend=defend, defence=defence)
    assert not recovered.known
    assert recovered.distinct.tolist() == [3, 8]


def test_noise_as_large_as_the_gradient_leaves_nothing():
    recovered = recover((3, 8), classifier="ConvNet", defend=lambda update: noisy(update, 1.0))
    assert (recovered.known, recovered.distinct.tolist()) == (False, [])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_several_steps_tell_distinct_labels(momentum):
    optimizer = LocalOptimizer(lr=0.01, momentum=momentum)
    recovered = recover((6, 1), classifier="ConvNet", local_steps=2, optimizer=optimizer)
    assert recovered.labels.tolist() == [1, 6]


def test_one_adam_step_tells_and_two_do_not():
    adam = LocalOptimizer(name="adam", lr=1e-3)
    assert recover((6,), optimizer=adam).labels.tolist() == [6]
    assert not recover((6, 1), local_steps=2, optimizer=adam).known


def test_a_layer_that_was_not_sent_tells_nothing():
    victim = make_classification_victim((3,), defend=lambda update: dict(list(update.items())[:-2]))
    assert not recover_labels(InversionProblem(victim.observation, "cpu")).known


def test_more_images_than_classes_are_counted_where_they_are_alike():
    labels = [0, 0, 1, 2, 2, 2, 3, 5, 5, 7, 8, 9]
    features = 1 + 0.01 * draw_features(12, 20, seed=3)
    layer = make_layer(draw_weights(10, 20, seed=4, scale=0.1), features, labels)
    assert labels_behind(layer).labels.tolist() == labels


def test_a_search_takes_revealed_labels_or_else_recovered_ones():
    known, private = (make_classification_victim((5, 2), known=known).observation for known in (True, False))
    assert labels_for_search(InversionProblem(known, "cpu")).tolist() == [5, 2]
    assert labels_for_search(InversionProblem(private, "cpu")).tolist() == [2, 5]
    hidden = make_classification_victim((5, 2), defend=lambda update: noisy(update, 100.0)).observation
    with pytest.raises(HiddenLabelsError, match=r"^labels cannot be read off this update \(margin .* 0 of the 2 are"):
        labels_for_search(InversionProblem(hidden, "cpu"))
