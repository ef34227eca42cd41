"""The interface of every model inversion, and what it returns.

Adding one: subclass ModelInversion in a file of its own, give it a ``name``, implement ``search``, and register it
(attacks/model_inversion/registry.py).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from attacks.attack import AttackError, repeatable_arithmetic
from attacks.model_inversion.arguments import Arguments
from attacks.model_inversion.augmentation import Augmentation
from attacks.model_inversion.target import Target, TrainedClassifier
from attacks.trace import to_unit_range

Class = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class ClassReconstructions:
    """Images of a classifier's classes: float32 [K,R,C,H,W] in [0, 1], R of each of ``classes`` int64 [K]; on the CPU.

    ``evaluations``: how many images went through the classifier or a diffusion model, in training too.
    """

    images: Tensor
    classes: Tensor
    evaluations: int
    seconds: float
    device: str
    method: str
    settings: dict[str, Any]
    seed: int


class ModelInversion(Arguments, ABC):
    """From a trained classifier and public images to images of the classes that it was trained on.

    The fields of a subclass are its arguments, validated when it is made.
    """

    name: ClassVar[str]

    classes: tuple[Class, ...] | None = Field(None, min_length=1, description="classes to reconstruct; unset: all")
    images_per_class: int = Field(5, ge=1, le=10_000, description="images of every class, R")

    def reconstruct(
        self, classifier: TrainedClassifier, public: Tensor, seed: int, device: str = "cpu"
    ) -> ClassReconstructions:
        """Invert a classifier with the help of ``public`` images [M,C,H,W] in [-1, 1], of which no label is known.

        Same classifier, images, seed, device and thread count: same result, bit for bit on a CPU.

        Raises:
            AttackError: if the public images are no such, the classifier does not take them, a class does not exist, or
                what is found is no number.
            ConfigError: if the classifier, or a diffusion model for images of this size, cannot be built.
        """
        return self.invert(Target(classifier, public, seed, device))

    def invert(self, target: Target) -> ClassReconstructions:
        """The same for a target that several inversions may share: what two of them compute alike is computed once."""
        self.check(target.num_classes, target.public.shape[1:])
        started, before = time.perf_counter(), target.evaluations
        classes = torch.tensor(self.chosen_classes(target.num_classes))
        labels = classes.repeat_interleave(self.images_per_class).to(target.device)
        with repeatable_arithmetic():
            images = self.search(target, labels)
        if not images.isfinite().all():
            raise AttackError(f"model inversion {self.name!r} ran away to numbers that are not finite; lower its lr")
        return ClassReconstructions(
            images=to_unit_range(images).unflatten(0, (len(classes), self.images_per_class)),
            classes=classes,
            evaluations=target.evaluations - before,
            seconds=time.perf_counter() - started,
            device=target.device,
            method=self.name,
            settings=self.model_dump(mode="json"),
            seed=target.seed,
        )

    @abstractmethod
    def search(self, target: Target, labels: Tensor) -> Tensor:
        """Images [N,C,H,W] in [-1, 1] of the classes ``labels`` int64 [N], every class ``images_per_class`` times.

        All randomness comes from ``target.generator``.
        """

    def check(self, num_classes: int, image_shape: Sequence[int]) -> None:
        """Refuse what does not fit a classifier of so many classes of images [C,H,W], before any time is spent.

        Raises:
            AttackError: if a class does not exist, or the images cannot be changed as an augmentation says.
            ConfigError: if there is no diffusion model as the arguments describe it.
        """
        self.chosen_classes(num_classes)
        for table in (self, *(value for _, value in self)):
            augmentation = getattr(table, "augmentation", None)
            if isinstance(augmentation, Augmentation):
                augmentation.check(image_shape)

    @field_validator("classes")
    @classmethod
    def _named_once(cls, classes: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if classes is not None and len(set(classes)) < len(classes):
            raise ValueError("a class is named twice; allowed: each once")
        return classes

    def chosen_classes(self, num_classes: int) -> list[int]:
        """The classes to reconstruct of a classifier that has so many, without repetition.

        Raises:
            AttackError: if it lacks one of ``classes``.
        """
        classes = range(num_classes) if self.classes is None else self.classes
        for number in classes:
            if number >= num_classes:
                raise AttackError(
                    f"model inversion {self.name!r}: classes = {number}; the classifier has {num_classes}, "
                    f"allowed: 0 to {num_classes - 1}"
                )
        return list(dict.fromkeys(classes))
