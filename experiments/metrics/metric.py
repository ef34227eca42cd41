"""The interface of every metric.

To add one, subclass Metric in a file of its own, say what it is in the class variables, and override ``compare``. Then
register it in registry.py or, from another package, as an entry point of group ``fl_sim.metrics``.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

AT_ONCE = 32
"""Images that a metric compares together: the maps that it makes of an image take up to a hundred times its memory."""


class MetricUnavailableError(RuntimeError):
    """A metric that cannot be computed on this machine; the message says why in one line."""


class Metric(BaseModel, ABC):
    """How close two images are: a function of two batches float [N,C,H,W] in [0, 1], one value per pair.

    The fields of a subclass are its arguments, validated when it is made. ``better`` says which of two values is that
    of the closer pair, ``range`` which values there are, ``needs`` what it takes beyond the two images. ``definition``
    is a sentence, with windows and widths, and with what is done to small images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    better: ClassVar[Literal["larger", "smaller"]]
    range: ClassVar[str]
    definition: ClassVar[str]
    needs: ClassVar[str] = "nothing"

    @abstractmethod
    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """The values [N] of a few pairs, float64 [N,C,H,W] each, of 1 or 3 channels and sides from 11 px."""

    def missing(self) -> str | None:
        """Why it cannot be computed on this machine, in one line; None if it can."""
        return None

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The value of every pair, float64 [N]; the order of the two makes no difference.

        Raises:
            MetricUnavailableError: if it cannot be computed on this machine.
        """
        pairs = zip(first.double().split(AT_ONCE), second.double().split(AT_ONCE), strict=True)
        return torch.cat([self.compare(one, other).double() for one, other in pairs])
