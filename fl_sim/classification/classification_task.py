"""Classification as a task: cross-entropy over a number of classes."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from fl_sim.classification.network import predict
from fl_sim.classification.network_check import check_network
from fl_sim.classification.training_loss import loss
from fl_sim.network.training_task import TrainingTask


class ClassificationTask(TrainingTask):
    """A network learns to tell ``num_classes`` classes of images apart (``loss``); noise and timesteps are None."""

    labels_named: ClassVar[str] = "model.classes"

    task: Literal["classification"] = "classification"
    num_classes: int = Field(ge=2, le=65_536, strict=True)

    @override
    def check(self, model: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        check_network(model, self.num_classes, image_shape)

    @override
    def label_count(self, model: Mapping[str, Any]) -> int | None:
        return self.num_classes

    @override
    def predict(
        self, model: nn.Module, images: Tensor, timesteps: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        return predict(model, images)

    @override
    def loss(
        self,
        model: nn.Module,
        images: Tensor,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        assert labels is not None
        return loss(model, images, labels)
