"""LPIPS: learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924, eq. 1), version 0.1.

Its linear layers come with the package ``lpips``. The backbone, a classifier trained on ImageNet, is a file of
torchvision that has to be on this machine: it is never downloaded here. It is that of the setting
``metrics.lpips_weights``, else that in torch's cache.
"""

import warnings
from dataclasses import dataclass
from errno import EINVAL
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from typing_extensions import override

from experiments.metrics.enlarging import enlarge
from experiments.metrics.metric import Metric, MetricUnavailableError
from fl_sim.config import SettingsError
from fl_sim.errors import message

SIDE = 64


@dataclass(frozen=True)
class Backbone:
    """A network under LPIPS.

    ``net``: its name in the package ``lpips``. ``file``: what torchvision calls its weights. ``mark``: the name of a
    tensor whose ``shape`` tells these weights from those of the others.
    """

    net: str
    title: str
    file: str
    mark: str
    shape: tuple[int, ...]

    @property
    def cached(self) -> Path:
        """Where torch's cache keeps the weights."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file


BACKBONES = {
    backbone.net: backbone
    for backbone in (
        Backbone("alex", "AlexNet", "alexnet-owt-7be5be79.pth", "features.0.weight", (64, 3, 11, 11)),
        Backbone("vgg", "VGG-16", "vgg16-397923af.pth", "features.28.weight", (512, 512, 3, 3)),
        Backbone(
            "squeeze", "SqueezeNet 1.1", "squeezenet1_1-b8a52dc0.pth", "features.12.squeeze.weight", (64, 512, 1, 1)
        ),
    )
}


def recognise(path: Path) -> Backbone:
    """Whose weights the file ``path`` holds, a state dict as torchvision or safetensors have it.

    Raises:
        SettingsError: if it cannot be read, or holds the weights of no backbone.
    """
    weights = read_weights(path)
    for backbone in BACKBONES.values():
        if backbone.mark in weights and weights[backbone.mark].shape == backbone.shape:
            return backbone
    files = ", ".join(backbone.file for backbone in BACKBONES.values())
    raise SettingsError(f"{path}: not the weights of a backbone of LPIPS; allowed: those in torchvision's {files}")


class LPIPS(Metric):
    """LPIPS on one backbone; ``weights``: the file with the backbone's weights, None for the one in torch's cache."""

    better: ClassVar[Literal["larger", "smaller"]] = "smaller"
    range: ClassVar[str] = "0 (equal) to about 1"
    backbone: ClassVar[Backbone]

    weights: Path | None = None

    @property
    def file(self) -> Path:
        """The file with the backbone's weights, there or not."""
        return self.weights or self.backbone.cached

    @override
    def missing(self) -> str | None:
        if not self.file.is_file():
            return (
                f"torchvision's {self.backbone.title} weights are missing: put {self.file.name} in {self.file.parent}, "
                "or name it in metrics.lpips_weights"
            )
        try:
            load_network(self.backbone.net, self.file)
        except SettingsError as error:
            return message(error)
        return None

    @override
    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        if reason := self.missing():
            raise MetricUnavailableError(reason)
        network = load_network(self.backbone.net, self.file)
        with torch.no_grad():
            values: Tensor = network(_for_network(first), _for_network(second))
        return values.flatten()


def _definition(backbone: Backbone) -> str:
    return (
        f"{backbone.title}, version 0.1, grey images as RGB; images whose shorter side is under {SIDE} px are enlarged "
        f"until it is {SIDE} px long (bicubic)"
    )


def _needs(backbone: Backbone) -> str:
    return f"{backbone.file}, torchvision's {backbone.title}"


class AlexLPIPS(LPIPS):
    """Learned perceptual distance by AlexNet, the usual one."""

    backbone: ClassVar[Backbone] = BACKBONES["alex"]
    definition: ClassVar[str] = _definition(backbone)
    needs: ClassVar[str] = _needs(backbone)


class VggLPIPS(LPIPS):
    """Learned perceptual distance by VGG-16."""

    backbone: ClassVar[Backbone] = BACKBONES["vgg"]
    definition: ClassVar[str] = _definition(backbone)
    needs: ClassVar[str] = _needs(backbone)


class SqueezeLPIPS(LPIPS):
    """Learned perceptual distance by SqueezeNet 1.1."""

    backbone: ClassVar[Backbone] = BACKBONES["squeeze"]
    definition: ClassVar[str] = _definition(backbone)
    needs: ClassVar[str] = _needs(backbone)


def _for_network(images: Tensor) -> Tensor:
    """Images as the networks take them: RGB in [-1, 1], float32, not too small."""
    return (enlarge(images.float(), SIDE) * 2 - 1).expand(-1, 3, -1, -1)


@cache
def load_network(net: str, file: Path) -> nn.Module:
    """LPIPS on the backbone called ``net`` with the weights in ``file``, frozen.

    Raises:
        SettingsError: if the file cannot be read, or lacks a tensor of that backbone, or has one of no finite numbers.
    """
    network = _random_network(net)
    _load_into(network, read_weights(file), file)
    return network.eval().requires_grad_(False)


def _random_network(net: str) -> Any:
    """LPIPS with a backbone that is not trained; the package itself would download the trained one."""
    from lpips import LPIPS

    # lpips calls torchvision in the old way, and initial weights must not move the draws of a run.
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        return LPIPS(net=net, pnet_rand=True, verbose=False)


def _load_into(network: Any, weights: dict[str, Tensor], file: Path) -> None:
    for name, parameter in network.net.named_parameters():
        stored = f"features.{name.partition('.')[2]}"  # without the slice that lpips puts the layer into
        if stored not in weights or weights[stored].shape != parameter.shape:
            raise SettingsError(f"{file}: it has no tensor {stored!r} of shape {list(parameter.shape)}")
        if not _finite(weights[stored]):
            raise SettingsError(f"{file}: {stored!r} does not hold finite real numbers")
        parameter.data.copy_(weights[stored])


def _finite(weights: Tensor) -> bool:
    return weights.layout is torch.strided and weights.is_floating_point() and bool(weights.isfinite().all())


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of the convolutions in a file of weights: safetensors, or a pickle of tensors and nothing else.

    Raises:
        SettingsError: if it cannot be read as such.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # reading a pipe would wait without end
            raise OSError(EINVAL, "no regular file")
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if name.startswith("features.")}  # noqa: SIM118
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value for name, value in stored.items() if name.startswith("features.")}
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or message(error)}") from error
    except Exception as error:  # whatever is raised about a file of another kind; weights_only runs none of its code
        raise SettingsError(f"{path}: no file of tensors; allowed: a state dict as .pth or .safetensors") from error
