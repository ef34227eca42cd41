"""Diffusion as a task: the DDPM loss under one noise schedule."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from diffusers import DDPMScheduler
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from fl_sim.diffusion.network import predict
from fl_sim.diffusion.network_check import check_network
from fl_sim.diffusion.noise_schedule import build_scheduler
from fl_sim.diffusion.training_loss import loss
from fl_sim.network.configuration import cached_by_value
from fl_sim.network.network import num_classes
from fl_sim.network.training_task import TrainingTask

PredictionType = Literal["epsilon", "v_prediction", "sample"]


class DiffusionTask(TrainingTask):
    """A network learns what was added to noisy images (``loss``); it may be told labels.

    ``scheduler`` is the configuration of the noise schedule, ``prediction_type`` the same as in there; the loss is
    weighted by ``min_snr_gamma``, and the noise has the offset ``noise_offset``.
    """

    labels_named: ClassVar[str] = "num_class_embeds"

    task: Literal["diffusion"] = "diffusion"
    prediction_type: PredictionType = "epsilon"
    scheduler: dict[str, Any]
    min_snr_gamma: float | None = Field(None, gt=0, strict=True)
    noise_offset: float = Field(0.0, ge=0, strict=True)

    @model_validator(mode="after")
    def _one_prediction_type(self) -> "DiffusionTask":
        if self.scheduler.get("prediction_type", "epsilon") != self.prediction_type:
            raise ValueError("prediction_type differs from the scheduler's")
        return self

    @classmethod
    def on(
        cls, scheduler: Mapping[str, Any], min_snr_gamma: float | None = None, noise_offset: float = 0.0
    ) -> "DiffusionTask":
        """The task with the noise schedule ``scheduler``, whose prediction type it is."""
        return cls(
            prediction_type=scheduler.get("prediction_type", "epsilon"),
            scheduler=dict(scheduler),
            min_snr_gamma=min_snr_gamma,
            noise_offset=noise_offset,
        )

    def noise_schedule(self) -> DDPMScheduler:
        """The noise schedule; equal tasks share one object: do not change it."""
        return _noise_schedule(self.scheduler)

    @override
    def check(self, model: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        check_network(model, self.scheduler, image_shape)

    @override
    def label_count(self, model: Mapping[str, Any]) -> int | None:
        return num_classes(model)

    @override
    def predict(
        self, model: nn.Module, images: Tensor, timesteps: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        assert timesteps is not None
        return predict(model, images, timesteps, labels)

    @override
    def loss(
        self,
        model: nn.Module,
        images: Tensor,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        assert noise is not None
        assert timesteps is not None
        return loss(model, self.noise_schedule(), images, noise, timesteps, labels, self.min_snr_gamma)


@cached_by_value
def _noise_schedule(config: Mapping[str, Any]) -> DDPMScheduler:
    return build_scheduler(config)
