"""The baseline without a prior: pixels that the classifier takes for an image of the class, whatever they look like."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attacks.model_inversion.augmentation import Augmentation
from attacks.model_inversion.margin_loss import MarginLoss
from attacks.model_inversion.model_inversion import ModelInversion
from attacks.model_inversion.target import Target


class MaxMargin(ModelInversion):
    """Diff-MI's loss of the classifier alone, minimised over pixels by Adam."""

    name: ClassVar[str] = "max-margin"

    iterations: int = Field(300, ge=1, description="of Adam")
    lr: float = Field(0.05, gt=0, description="Adam's learning rate")
    start: float = Field(0.1, ge=0, description="standard deviation of the noise that the search starts from")
    loss: MarginLoss = MarginLoss()
    augmentation: Augmentation = Field(
        Augmentation(copies=4, least_crop=0.9, rotation=5, brightness=0.1, contrast=0.1),
        description="of the images that the classifier judges",
    )

    def search(self, target: Target, labels: Tensor) -> Tensor:
        """All images at once; pixels are kept in [-1, 1]."""
        generator, judged = target.generator("images"), self.loss.of(target)
        noise = torch.randn(len(labels), *target.public.shape[1:], generator=generator)
        images = (self.start * noise).to(target.device).requires_grad_()
        optimizer = torch.optim.Adam([images], lr=self.lr)
        for _ in range(self.iterations):
            views = self.augmentation.apply(images, generator)
            loss = judged(views, labels.repeat(self.augmentation.copies))
            (images.grad,) = torch.autograd.grad(loss, images)
            optimizer.step()
            with torch.no_grad():
                images.clamp_(-1, 1)
        return images.detach()
