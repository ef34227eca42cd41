"""Networks of somebody's own, as factories build them: layers have other names than those of diffusers."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fl_sim import network

HERE = "tests.own_networks"


@contextmanager
def trusting(*functions: str) -> Iterator[None]:
    """Trust these functions of this module, and no other factory, meanwhile."""
    with patch("fl_sim.network.factory._trusted", set()):
        network.trust(f"{HERE}:{function}" for function in functions)
        yield


def config(function: str, **arguments: Any) -> dict[str, Any]:
    """The configuration of the network that a function of this module builds."""
    return {"_factory": f"{HERE}:{function}", **arguments}


class Own(nn.Module):
    """Two resolutions, of which the inner one has no more positions than channels for images of 8x8."""

    def __init__(self, width: int = 32, steps: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(steps, width) if steps else None
        self.clock = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.into = nn.Conv2d(3, width, 3, padding="same")
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.shift, self.scale = nn.Linear(width, width), nn.Linear(width, width)
        self.inner = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.mix = nn.Linear(width, width)
        self.up = nn.Upsample(scale_factor=2)
        self.out = nn.Conv2d(2 * width, 3, 3, padding=1)
        self.width = width

    def embedding(self, t: Tensor) -> Tensor:
        if self.table is not None:
            return self.table(t)
        frequencies = torch.exp(-math.log(10_000) * torch.arange(self.width // 2, device=t.device) / (self.width // 2))
        return torch.cat([(t[:, None] * frequencies).sin(), (t[:, None] * frequencies).cos()], dim=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.denoise(x, self.clock(self.embedding(t)))

    def denoise(self, x: Tensor, time: Tensor) -> Tensor:
        first = self.into(x)
        h = self.down(nn.functional.silu(first))
        h = h * (1 + self.scale(time)[:, :, None, None]) + self.shift(time)[:, :, None, None]
        h = h + self.inner(h)
        h = h + self.mix(h.mean(dim=(2, 3)))[:, :, None, None]
        return self.out(torch.cat([first, self.up(h)], dim=1))


def build(width: int = 32, steps: int | None = None) -> nn.Module:
    return Own(width, steps)


class _Labelled(Own):
    """A row of a table for every label goes through a layer of its own before the blocks see it with the time."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(width)
        self.kinds = nn.Sequential(nn.Embedding(classes, width), nn.Linear(width, width), nn.GELU())

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self.denoise(x, nn.functional.silu(self.clock(self.embedding(t)) + self.kinds(labels)))


def labelled(num_class_embeds: int, width: int = 32) -> nn.Module:
    return _Labelled(num_class_embeds, width)


def needs_labels() -> nn.Module:
    return _Labelled(10, 32)


def knows_ten_classes(num_class_embeds: int) -> nn.Module:
    assert num_class_embeds
    return _Labelled(10, 32)


class _ReadsTheTimesteps(_Labelled):
    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, t, labels) if int(t.max()) >= 0 else x


def reads_the_timesteps(num_class_embeds: int) -> nn.Module:
    return _ReadsTheTimesteps(num_class_embeds, 32)


class _ReturnsAnObject(Own):
    def forward(self, x: Tensor, t: Tensor) -> Any:
        return SimpleNamespace(sample=super().forward(x, t))


def returns_an_object() -> nn.Module:
    return _ReturnsAnObject()


class _NeedsNumbers(Own):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) if float(x.detach().sum()) > -1e9 else x


def needs_numbers() -> nn.Module:
    return _NeedsNumbers()


class _UsesALayerTwice(Own):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        of_images = self.shift(self.embedding(t)).mean(dim=1) + self.down(self.into(x)).mean(dim=(1, 2, 3))
        return super().forward(x, t) + of_images[:, None, None, None]


def uses_a_layer_twice() -> nn.Module:
    return _UsesALayerTwice()


def with_batch_norm(running_statistics: bool = True) -> nn.Module:
    own = Own()
    own.inner[0] = nn.BatchNorm2d(32, track_running_stats=running_statistics)
    return own


class _Counts(Own):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x, t)


def counts() -> nn.Module:
    return _Counts()


def with_dropout() -> nn.Module:
    own = Own()
    own.inner[1] = nn.Dropout(0.5)
    return own


def without_parameters() -> nn.Module:
    return Own().requires_grad_(False)


def with_an_unused_layer() -> nn.Module:
    own = Own()
    own.forgotten = nn.Linear(1, 1)
    return own


def half_precision() -> nn.Module:
    return Own().half()


def for_grey_images() -> nn.Module:
    own = Own()
    own.out = nn.Conv2d(64, 1, 3, padding=1)
    return own


class _HiddenRandomness(Own):
    def __init__(self) -> None:
        super().__init__()
        self.secret = torch.randn(1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) + self.secret


def with_hidden_randomness() -> nn.Module:
    return _HiddenRandomness()


def not_a_module() -> str:
    return "a network"


def classifier_with_batch_norm(running_statistics: bool = True, num_classes: int = 10) -> nn.Module:
    norm = nn.BatchNorm2d(4, track_running_stats=running_statistics)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), norm, nn.ReLU(), nn.Flatten(), nn.Linear(196, num_classes))
