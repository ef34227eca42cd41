"""A class-conditional network in the client: labels drawn with the images, dropped, and revealed only where known."""

import pytest
import torch

from fl_sim import network
from fl_sim.client_app import check_images, local_training, plain_gradient, private_draw
from fl_sim.config import SettingsError
from fl_sim.draws import drop_labels
from fl_sim.wire import CLIENT, LABELS, Recipe
from tests.fl_sim.federations import initial_arrays, tiny_recipe, tiny_settings
from tests.fl_sim.test_client_app import reply_of

CLASSES = 5
PHOTOGRAPH_OF_CLIENT_1 = 1
"""chelsea, the second of four photographs in alphabetical order."""


def conditional(rows: int = CLASSES, **changes: object) -> Recipe:
    recipe = tiny_recipe(**changes)
    return recipe.model_copy(update={"model": recipe.model | {"num_class_embeds": rows}})


def test_an_image_comes_with_the_number_of_its_photograph() -> None:
    draw = private_draw(tiny_settings(), conditional(batch_size=3), 1, 1)
    assert draw.labels is not None
    assert draw.labels.tolist() == [PHOTOGRAPH_OF_CLIENT_1] * 3
    for one, other in zip(draw[:3], private_draw(tiny_settings(), tiny_recipe(batch_size=3), 1, 1)[:3], strict=True):
        assert torch.equal(one, other), "labels change nothing else that is drawn"


def test_a_network_without_classes_is_told_no_label() -> None:
    assert private_draw(tiny_settings(), tiny_recipe(), 1, 1).labels is None


def test_labels_are_dropped_at_the_given_rate_by_the_private_seed() -> None:
    recipe = conditional(batch_size=400, label_dropout=0.25)
    labels = private_draw(tiny_settings(), recipe, 1, 1).labels
    assert labels is not None
    assert set(labels.tolist()) == {PHOTOGRAPH_OF_CLIENT_1, CLASSES - 1}
    assert 60 < int((labels == CLASSES - 1).sum()) < 140
    assert torch.equal(labels, private_draw(tiny_settings("seed=9"), recipe, 1, 1).labels)
    assert not torch.equal(labels, private_draw(tiny_settings("client.seed=12"), recipe, 1, 1).labels)
    assert not torch.equal(labels, private_draw(tiny_settings(), recipe, 1, 2).labels)


def test_nothing_is_dropped_at_rate_zero() -> None:
    labels = torch.arange(50)
    assert torch.equal(drop_labels(labels, seed=3, probability=0.0, null=99), labels)


def test_a_client_trains_with_its_labels_batch_by_batch() -> None:
    optimizer = network.LocalOptimizer(lr=0.01)
    recipe = conditional(update="weights", local_steps=2, optimizer=optimizer)
    weights = initial_arrays(recipe).to_torch_state_dict()
    draw = private_draw(tiny_settings(), recipe, 1, 1)._replace(labels=torch.tensor([0, 3]))
    told: list[list[int]] = []

    def spy(model, task, batch):  # type: ignore[no-untyped-def]
        told.append(batch.labels.tolist())
        return plain_gradient(model, task, batch)

    after, _ = local_training(recipe, weights, draw, "cpu", spy)
    assert told == [[0], [3]]
    moved = (after["class_embedding.weight"] != weights["class_embedding.weight"]).any(dim=1)
    assert moved.tolist() == [True, False, False, True, False]


@pytest.mark.parametrize(("noise_seed", "revealed"), [(None, None), (3, [PHOTOGRAPH_OF_CLIENT_1] * 2)])
def test_labels_cross_the_wire_in_the_known_threat_model_alone(
    noise_seed: int | None, revealed: list[int] | None
) -> None:
    recipe = conditional(batch_size=2, noise_seed=noise_seed)
    assert reply_of(recipe, tiny_settings())[CLIENT].get(LABELS) == revealed


def test_too_few_rows_are_refused_before_the_run() -> None:
    with pytest.raises(SettingsError, match="num_class_embeds = 3: the images have 4 classes"):
        check_images(tiny_settings(), conditional(rows=3))
    with pytest.raises(SettingsError, match="allowed: at least 5, of which the last"):
        check_images(tiny_settings(), conditional(rows=4, label_dropout=0.1))


def test_dropping_labels_that_nobody_has_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"client.label_dropout = 0.1: the network takes no class labels"):
        check_images(tiny_settings(), tiny_recipe(label_dropout=0.1))
