import pytest
import torch

from fl_sim.classification import ClassificationTask
from fl_sim.network import CLASSIFIERS, ConfigError, build_model, unet_config

TASK = ClassificationTask(num_classes=10)
CONFIG = {"_class_name": "ConvNet", "num_classes": 10, "image_size": [16, 16], "in_channels": 1, "channels": [4, 4]}


def test_the_loss_is_the_cross_entropy_also_of_soft_labels() -> None:
    model, images, labels = build_model(CONFIG), torch.randn(3, 1, 16, 16), torch.tensor([0, 9, 0])
    expected = torch.nn.functional.cross_entropy(model(images), labels)
    torch.testing.assert_close(TASK.loss(model, images, labels=labels), expected)
    soft = torch.nn.functional.one_hot(labels, 10).float()
    torch.testing.assert_close(TASK.loss(model, images, labels=soft), expected)
    gradient, loss = TASK.gradient_and_loss(model, images, labels=labels)
    assert loss == pytest.approx(expected.item())
    assert gradient.keys() == dict(model.named_parameters()).keys()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_check_lets_through_what_trains_and_draws_nothing(name: str) -> None:
    before = torch.get_rng_state()
    TASK.check({key: value for key, value in CONFIG.items() if key != "channels"} | {"_class_name": name}, (1, 16, 16))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "image_shape", "message"),
    [
        ({"num_classes": 7}, (1, 16, 16), "tells 7 classes apart, the images have 10; allowed: as many"),
        ({}, (3, 16, 16), "takes images of 1 channels, the images have 3"),
        ({}, (1, 16, 24), "takes images of 16x16 pixels, the images have 16x24"),
        ({"_class_name": "ResNet", "channels": [6], "norm_num_groups": 4}, (1, 16, 16), "cannot be built"),
        (unet_config(16, 1), (1, 16, 16), "is no classifier; allowed: LeNet, ConvNet, ResNet"),
    ],
)
def test_what_does_not_fit_is_one_line(
    changes: dict[str, object], image_shape: tuple[int, int, int], message: str
) -> None:
    config = changes if "sample_size" in changes else CONFIG | changes
    with pytest.raises(ConfigError, match=message) as caught:
        TASK.check(config, image_shape)
    assert "\n" not in str(caught.value)
