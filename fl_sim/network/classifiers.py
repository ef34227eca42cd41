"""Classifiers by name: LeNet as DLG attacks it, a small ConvNet, a ResNet with GroupNorm."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError, validate_call
from torch import Tensor, nn

from fl_sim.errors import dotted, first_error, message
from fl_sim.network.configuration import ConfigError

Positive = Annotated[int, Field(ge=1, le=65_536)]
Side = Annotated[int, Field(ge=4, le=1024)]
Blocks = Annotated[int, Field(ge=1, le=64)]
Channels = Annotated[list[Positive], Field(min_length=1, max_length=16)]


@validate_call
def lenet(num_classes: Positive, image_size: tuple[Side, Side], in_channels: Positive = 3) -> nn.Module:
    """LeNet with sigmoids, as in the code of DLG (arXiv 1906.08935; github.com/mit-han-lab/dlg, models/vision.py).

    Three convolutions of 12 channels and one linear layer. All weights are drawn uniformly from -0.5 to 0.5: with the
    usual, smaller ones the sigmoids hide the image.
    """
    strides = (2, 2, 1)
    layers: list[nn.Module] = []
    channels, (height, width) = in_channels, image_size
    for stride in strides:
        layers += [nn.Conv2d(channels, 12, kernel_size=5, padding=2, stride=stride), nn.Sigmoid()]
        channels, height, width = 12, -(-height // stride), -(-width // stride)
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, num_classes))
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return network


@validate_call
def convnet(
    num_classes: Positive,
    image_size: tuple[Side, Side],
    in_channels: Positive = 3,
    channels: Channels = (32, 64),  # type: ignore[assignment]  # validated into a list
) -> nn.Module:
    """Convolutions of 3x3 pixels with ReLU, every one but the first of stride 2; then one linear layer."""
    layers: list[nn.Module] = []
    before, (height, width) = in_channels, image_size
    for level, after in enumerate(channels):
        stride = 1 if level == 0 else 2
        layers += [nn.Conv2d(before, after, kernel_size=3, padding=1, stride=stride), nn.ReLU()]
        before, height, width = after, -(-height // stride), -(-width // stride)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * width, num_classes))


@validate_call
def resnet(
    num_classes: Positive,
    image_size: tuple[Side, Side],  # noqa: ARG001  # every classifier is told; this one takes images of any size
    in_channels: Positive = 3,
    channels: Channels = (32, 64, 128),  # type: ignore[assignment]  # validated into a list
    blocks: Blocks = 1,
    norm_num_groups: Positive = 8,
) -> nn.Module:
    """ResNet for small images (He et al. 2015, arXiv 1512.03385, section 4.2) with GroupNorm in place of BatchNorm.

    A convolution; then ``blocks`` basic blocks for each of ``channels``, every level but the first halving the image;
    the mean over positions; one linear layer.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels[0], kernel_size=3, padding=1, bias=False),
        nn.GroupNorm(norm_num_groups, channels[0]),
        nn.ReLU(),
    ]
    before = channels[0]
    for level, after in enumerate(channels):
        for block in range(blocks):
            stride = 2 if level > 0 and block == 0 else 1
            layers.append(BasicBlock(before, after, stride, norm_num_groups))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes))


class BasicBlock(nn.Module):
    """relu(F(x) + x), where F is two convolutions of 3x3 pixels (arXiv 1512.03385, eq. 1 and 2)."""

    def __init__(self, before: int, after: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, kernel_size=3, padding=1, stride=stride, bias=False)
        self.norm1 = nn.GroupNorm(groups, after)
        self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, after)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Activations [B,after,H/stride,W/stride] of activations [B,before,H,W]."""
        residual = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(residual + self.shortcut(x))


CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {"LeNet": lenet, "ConvNet": convnet, "ResNet": resnet}
"""Builders by the name that ``_class_name`` of a configuration may have; the other keys are their arguments."""


def build_classifier(config: Mapping[str, Any]) -> nn.Module:
    """Build the classifier that ``_class_name``, one of CLASSIFIERS, names; the other keys are its arguments.

    Raises:
        ConfigError: if an argument is not allowed.
    """
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return CLASSIFIERS[config["_class_name"]](**arguments)
    except ValidationError as error:
        first = first_error(error)
        raise ConfigError(f"model.{dotted(first['loc'])} = {first['input']!r}: {first['msg']}") from error
    except ValueError as error:  # a layer refuses what each argument for itself allows
        raise ConfigError(f"model configuration cannot be built: {message(error)}") from error
