"""The interface of a task: what a network is trained for, and how its loss is computed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from fl_sim.network.parameters import weight_gradient


class TrainingTask(BaseModel, ABC):
    """What a network is trained for; the fields of a subclass are what the server prescribes of its loss.

    A batch is images [B,C,H,W] in [-1, 1], noise [B,C,H,W], timesteps int64 [B] and labels int64 [B]; what a task does
    not use is None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    labels_named: ClassVar[str]
    """The setting that says how many labels there are, for messages."""

    @abstractmethod
    def check(self, model: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        """Check that the network of the configuration ``model`` can be trained so on images [C,H,W].

        Raises:
            ConfigError: if not; the line says why.
        """

    @abstractmethod
    def label_count(self, model: Mapping[str, Any]) -> int | None:
        """K, where training uses labels 0..K-1 of images; None where it uses none."""

    @abstractmethod
    def predict(
        self, model: nn.Module, images: Tensor, timesteps: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The network's output for what it takes in: images, in diffusion noisy ones."""

    @abstractmethod
    def loss(
        self,
        model: nn.Module,
        images: Tensor,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The mean training loss of a batch; a scalar."""

    def gradient_and_loss(
        self,
        model: nn.Module,
        images: Tensor,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], float]:
        """dL/dw of ``loss`` by trainable parameter's name, and the loss itself; the model's ``.grad`` is untouched."""
        value = self.loss(model, images, noise, timesteps, labels)
        return weight_gradient(model, value), value.item()
