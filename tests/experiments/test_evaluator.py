import pytest
import torch

from experiments.evaluator import evaluator_network, train_evaluator
from fl_sim.classification import accuracy, predict


@pytest.mark.parametrize("steps", [1, 3])
def test_it_repeats_by_seed_and_leaves_the_global_generator_alone(steps: int) -> None:
    images, labels = _shades(40)
    before = torch.get_rng_state()
    model, again, other = (train_evaluator(_network(), images, labels, steps, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights, repeated, unlike = (list(trained.state_dict().values()) for trained in (model, again, other))
    assert all(torch.equal(a, b) for a, b in zip(weights, repeated, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights, unlike, strict=True))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_it_learns() -> None:
    images, labels = _shades(40)
    model = train_evaluator(_network(), images, labels, 80, seed=1)
    assert accuracy(predict(model, images), labels) > 0.95


def test_it_is_of_another_architecture_than_what_it_judges() -> None:
    for attacked, judge in (("ConvNet", "ResNet"), ("LeNet", "ResNet"), ("ResNet", "ConvNet")):
        assert evaluator_network({"_class_name": attacked}, 2, (1, 8, 6))["_class_name"] == judge
    own = evaluator_network({"_factory": "mine:build"}, 3, (1, 8, 6))
    assert (own["num_classes"], own["image_size"], own["in_channels"]) == (3, [8, 6], 1)


def _network() -> dict[str, object]:
    return evaluator_network({"_class_name": "ResNet"}, 2, (1, 6, 6))


def _shades(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright and dark images, by class."""
    labels = torch.arange(count) % 2
    noise = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return noise - labels[:, None, None, None], labels
