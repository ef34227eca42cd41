"""Classifiers: what configurations build, the loss against hand-computed values, features, bad input."""

import math

import pytest
import torch
from torch import nn

from fl_sim import classification, network
from fl_sim.network import ConfigError

CONFIG = {"num_classes": 10, "image_size": [16, 16], "in_channels": 1}


@pytest.mark.parametrize("name", network.CLASSIFIERS)
@pytest.mark.parametrize("sides", [[16, 16], [17, 24]])
def test_a_classifier_makes_logits_of_its_features(name: str, sides: list[int]) -> None:
    model = network.build_model({"_class_name": name, **CONFIG, "image_size": sides})
    images = torch.rand(3, 1, *sides) * 2 - 1
    logits, features = classification.logits_and_features(model, images)
    _, layer = classification.last_layer(model)
    assert logits.shape == (3, 10)
    torch.testing.assert_close(layer(features), logits)
    torch.testing.assert_close(classification.predict(model, images), logits)


def test_lenet_is_that_of_dlg() -> None:
    model = network.build_model({"_class_name": "LeNet", "num_classes": 100, "image_size": [32, 32]})
    assert [tuple(p.shape) for p in model.parameters() if p.ndim > 1] == [
        (12, 3, 5, 5),
        (12, 12, 5, 5),
        (12, 12, 5, 5),
        (100, 768),
    ]
    assert 0.49 < max(p.abs().max().item() for p in model.parameters()) <= 0.5


def test_the_loss_is_the_mean_cross_entropy() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [math.log(3.0)]]))
    images = torch.ones(2, 1, 1, 1)
    gradient, loss = classification.gradient_and_loss(model, images, torch.tensor([0, 1]))
    assert loss == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    torch.testing.assert_close(gradient["1.weight"], torch.tensor([[-0.25], [0.25]]))  # mean of softmax - one-hot
    assert model[1].weight.grad is None
    soft = classification.loss(model, images[:1], torch.tensor([[0.5, 0.5]]))
    assert soft.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "LeNt"}, "model._class_name 'LeNt' is not allowed; allowed: UNet2DModel, LeNet, Conv"),
        ({"depth": 3}, "model.depth = 3: unexpected keyword argument"),
        ({"num_classes": 0}, "model.num_classes = 0: input should be greater than or equal to 1"),
        (
            {"_class_name": "ResNet", "norm_num_groups": 7},
            "model configuration cannot be built: num_channels (32)",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        network.build_model({"_class_name": "LeNet", **CONFIG} | change)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no linear layer"):
        classification.last_layer(nn.Sequential(nn.Conv2d(1, 2, 3)))
