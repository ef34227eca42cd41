"""Diff-MI, "Model Inversion Attacks Through Target-Specific Conditional Diffusion Models" (Li et al. 2024).

arXiv 2407.11424. A diffusion model of public images is made specific to the classifier under attack, by pseudo-labels
in its training and by the classifier's own judgement in its fine-tuning. Then images of every class are searched for
under this prior. Order, losses and numbers are those of the authors' code (github.com/Ouxiang-Li/Diff-MI); what was
inferred is marked in docs/model-inversion.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from attacks.attack import AttackError
from attacks.model_inversion.arguments import merge
from attacks.model_inversion.conditional_prior import ConditionalPrior, PriorTraining, train_prior
from attacks.model_inversion.fine_tuning import FineTuning, fine_tune
from attacks.model_inversion.image_search import ImageSearch, Terms
from attacks.model_inversion.margin_loss import ClassLoss, MarginLoss
from attacks.model_inversion.model_inversion import ModelInversion
from attacks.model_inversion.pgd import PGD
from attacks.model_inversion.pseudo_labels import most_confident
from attacks.model_inversion.samplers import ddim
from attacks.model_inversion.target import Target

SMALL_VIEWS = {"least_crop": 0.9, "rotation": 5.0, "flip": 0.0, "brightness": 0.1, "contrast": 0.1}
"""What leaves a picture of few pixels, and of a digit, what it is."""

RECIPES: dict[str, dict[str, Any]] = {
    "published": {},
    "digits": {
        "training": {
            "steps": 250,
            "batch_size": 32,
            "lr": 1e-3,
            "ema_decay": 0.98,
            "flip": 0.0,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "unet": {},
        },
        "fine_tuning": {
            "epochs": 4,
            "images_per_class": 4,
            "batch_size": 10,
            "augmentation": SMALL_VIEWS | {"copies": 2},
        },
        "image_search": {"augmentation": {**SMALL_VIEWS, "copies": 4, "blur_probability": 0.0}},
    },
}
"""What a recipe sets in place of the defaults, which are the authors'."""


@dataclass(frozen=True)
class Stages:
    """Which stages a variant runs after the pre-training; without ``terms`` the prior is sampled, not searched."""

    fine_tune: bool
    terms: Terms | None


VARIANTS = {
    "full": Stages(fine_tune=True, terms="both"),
    "no-fine-tuning": Stages(fine_tune=False, terms="both"),
    "prior-only": Stages(fine_tune=True, terms="prior"),
    "classifier-only": Stages(fine_tune=True, terms="classifier"),
    "sampling-only": Stages(fine_tune=True, terms=None),
    "plain-sampling": Stages(fine_tune=False, terms=None),
}


class DiffMI(ModelInversion):
    """A target-specific diffusion prior and the classifier's margin, step by step in turn."""

    name: ClassVar[str] = "diff-mi"

    recipe: Literal["digits", "published"] = Field(
        "digits",
        description="defaults of all others: for small grey pictures on a CPU, or the authors' for 64x64 faces",
    )
    variant: Literal[
        "full", "no-fine-tuning", "prior-only", "classifier-only", "sampling-only", "plain-sampling", "public-images"
    ] = Field("full", description="which stages run, for ablation")
    pseudo_labels: int = Field(30, ge=1, description="most confident public images of every class, n")
    training: PriorTraining = PriorTraining()
    loss: MarginLoss = MarginLoss()
    fine_tuning: FineTuning = FineTuning()
    image_search: ImageSearch = ImageSearch()
    sampling_steps: int = Field(20, ge=1, le=1000, description="of DDIM, where the prior is sampled and not searched")
    pgd: PGD = PGD()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: dict[str, Any]) -> dict[str, Any]:
        return merge(RECIPES.get(str(given.get("recipe", "digits")), {}), given)

    @override
    def check(self, num_classes: int, image_shape: Sequence[int]) -> None:
        super().check(num_classes, image_shape)
        if self.variant != "public-images":
            self.training.check(num_classes, image_shape)

    def search(self, target: Target, labels: Tensor) -> Tensor:
        """The stages, one after the other."""
        chosen = most_confident(target.public_logits, self.pseudo_labels)
        if self.variant == "public-images":
            return self._public_images(target, labels, chosen)
        stages = VARIANTS[self.variant]
        judged = self.loss.of(target)
        prior = self._trained(target, chosen)
        if stages.fine_tune:
            prior = self._fine_tuned(target, prior, judged, labels.unique().cpu())
        generator = target.generator("images")
        if stages.terms is None:
            images = self._sampled(target, prior, labels, generator)
        else:
            images = self.image_search.run(prior, judged, labels, stages.terms, generator)
        return self.pgd.run(target, images, labels, target.generator("pgd"))

    def _public_images(self, target: Target, labels: Tensor, chosen: Tensor) -> Tensor:
        """The most confident public images themselves, the first one first."""
        if self.images_per_class > chosen.shape[1]:
            raise AttackError(
                f"images_per_class = {self.images_per_class}: variant 'public-images' has {chosen.shape[1]} of every "
                "class; allowed: at most that, or more pseudo_labels and public images"
            )
        classes = labels[:: self.images_per_class]
        return target.public[chosen[classes, : self.images_per_class].flatten()]

    def _trained(self, target: Target, chosen: Tensor) -> ConditionalPrior:
        """What every variant of the same target starts from."""
        return target.once(
            f"training {self.pseudo_labels} {self.training.model_dump_json()}",
            lambda: train_prior(target, chosen, self.training, target.generator("training")),
        )

    def _fine_tuned(
        self, target: Target, prior: ConditionalPrior, judged: ClassLoss, classes: Tensor
    ) -> ConditionalPrior:
        settings = [part.model_dump_json() for part in (self.training, self.loss, self.fine_tuning)]
        return target.once(
            f"fine-tuning {self.pseudo_labels} {classes.tolist()} {settings}",
            lambda: fine_tune(prior, judged, classes, self.fine_tuning, target.generator("fine-tuning")),
        )

    def _sampled(self, target: Target, prior: ConditionalPrior, labels: Tensor, generator: torch.Generator) -> Tensor:
        numbers = self.image_search
        latents = torch.randn(len(labels), *target.public.shape[1:], generator=generator).to(target.device)
        last = prior.scheduler.config.num_train_timesteps - 1
        return ddim(prior, latents, last, labels, self.sampling_steps, numbers.guidance, numbers.eta, generator)
