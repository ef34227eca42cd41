"""Fine-tuning of the prior by the classifier: what it samples of a class shall be taken for that class.

Step 1c of Diff-MI (arXiv 2407.11424). Few parameters are trained, through all steps of a sampler.
"""

from itertools import islice

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import AttackError
from attacks.model_inversion.arguments import Arguments
from attacks.model_inversion.augmentation import Augmentation
from attacks.model_inversion.conditional_prior import ConditionalPrior
from attacks.model_inversion.margin_loss import ClassLoss
from attacks.model_inversion.samplers import dpm_solver
from fl_sim import classification
from fl_sim.network import matching_names


class FineTuning(Arguments):
    """What is trained, how long, and on which samples."""

    epochs: int = Field(100, ge=1, description="epochs at most")
    images_per_class: int = Field(1, ge=1, description="samples of every class in an epoch")
    batch_size: int = Field(4, ge=1, description="samples in an optimiser step")
    lr: float = Field(2e-4, gt=0, description="AdamW's learning rate")
    accuracy: float = Field(
        0.99, ge=0, le=1, description="it ends with an epoch of which the classifier names this share"
    )
    steps: int = Field(10, ge=1, le=1000, description="of DPM-Solver++")
    guidance: float = Field(3.0, ge=0, description="w of classifier-free guidance; 1: none")
    judged_from: int = Field(3, ge=0, description="step, from 0, from which the predictions of x0 are judged too")
    trainable: tuple[str, ...] = Field(
        ("class_embedding.*", "mid_block.resnets.*.conv?.*", "mid_block.attentions.*.to_out.0.*"),
        min_length=1,
        description="glob patterns of the parameters that are trained",
    )
    augmentation: Augmentation = Field(
        Augmentation(
            copies=2, least_crop=0.8, rotation=5, flip=0.5, brightness=0.2, contrast=0.2, colour_probability=0.5
        ),
        description="of the images that the classifier judges",
    )


def fine_tune(
    prior: ConditionalPrior, loss: ClassLoss, classes: Tensor, tuning: FineTuning, generator: torch.Generator
) -> ConditionalPrior:
    """A copy of ``prior``, fine-tuned on samples of the ``classes`` int64 [K] that ``loss`` judges.

    Raises:
        AttackError: if no parameter is to be trained.
    """
    tuned = prior.copy(loss.target)
    parameters = [
        parameter.requires_grad_(True)
        for name, parameter in tuned.model.named_parameters()
        if matching_names([name], tuning.trainable)
    ]
    if not parameters:
        raise AttackError(
            f"fine_tuning.trainable = {list(tuning.trainable)}: no parameter of the diffusion model matches"
        )
    optimizer = torch.optim.AdamW(parameters, lr=tuning.lr)
    everyone = classes.repeat_interleave(tuning.images_per_class)
    for _ in range(tuning.epochs):
        named = 0
        for labels in everyone[torch.randperm(len(everyone), generator=generator)].split(tuning.batch_size):
            labels = labels.to(loss.target.device)
            judged = _judged(tuned, labels, loss.target.public.shape[1:], tuning, generator)
            views = tuning.augmentation.apply(torch.cat(judged), generator)
            value = loss(views, labels.repeat(len(judged) * tuning.augmentation.copies))
            for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()
            with torch.no_grad():
                logits = classification.predict(loss.target.classifier, judged[-1].clamp(-1, 1))
            named += int((logits.argmax(dim=1) == labels).sum())
        if named >= tuning.accuracy * len(everyone):
            break
    tuned.model.requires_grad_(False)
    return tuned


def _judged(
    prior: ConditionalPrior, labels: Tensor, shape: torch.Size, tuning: FineTuning, generator: torch.Generator
) -> list[Tensor]:
    """The late predictions of x0, and the samples."""
    latents = torch.randn(len(labels), *shape, generator=generator).to(labels.device)
    images = dpm_solver(prior, latents, labels, tuning.steps, tuning.guidance)
    return list(islice(images, min(tuning.judged_from, tuning.steps), None))
