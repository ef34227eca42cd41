"""Judges what a model inversion found, by the private images and by a classifier that the attacker never sees."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from experiments.evaluator import evaluator_network, train_evaluator
from experiments.inversion_metrics import image_figures
from experiments.settings import ExperimentSettings
from experiments.utility import ACCURACY, classifier_figures
from fl_sim.classification import ClassificationTask
from fl_sim.draws import derive_seed
from fl_sim.images.classes import class_numbers
from fl_sim.images.partition import held_out_images, partition
from fl_sim.images.sources import list_images
from fl_sim.wire import Recipe


@dataclass(frozen=True)
class Judge:
    """The evaluator of one run's model inversions.

    Its classifier learns from the clients' images and is of another architecture than the attacked one. How good it is
    shows on the images that no client holds.
    """

    settings: ExperimentSettings
    recipe: Recipe

    def figures(self, images: Tensor, labels: Tensor, target: nn.Module) -> dict[str, list[Any]]:
        """``image_figures`` of images [N,C,H,W] in [0, 1] meant to be of ``labels`` int64 [N], found in ``target``."""
        found = image_figures(images, labels, *self._private, target, self.classifier)
        return {name: values.tolist() for name, values in found.items()}

    @cached_property
    def classifier(self) -> nn.Module:
        """The evaluation classifier, frozen."""
        images, labels = self._private
        seed = derive_seed(self._seed, "evaluator")
        steps = self.settings.inversion.evaluator_steps
        assert isinstance(self.recipe.task, ClassificationTask)
        network = evaluator_network(self.recipe.model, self.recipe.task.num_classes, self.recipe.image_shape)
        return train_evaluator(network, 2 * images - 1, labels, steps, seed)

    @cached_property
    def accuracy(self) -> float:
        """Of the evaluation classifier, on the held-out images; NaN if there are none."""
        images, labels = self._decoded(sorted(held_out_images(self.settings.data, self._seed)))
        return classifier_figures(self.classifier, 2 * images - 1, labels)[ACCURACY] if len(images) else math.nan

    def examples(self, number: int, count: int) -> Tensor:
        """At most ``count`` of the clients' images of one class, [N,C,H,W] in [0, 1]."""
        of_class = [index for index in self._held if self._numbers[index] == number]
        return self._decoded(of_class[:count])[0]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the images' classes, in the order of their numbers."""
        return list_images(self.settings.data).classes

    @property
    def _seed(self) -> int:
        return self.settings.client.seed or 0

    @cached_property
    def _held(self) -> list[int]:
        """Indices of the images that some client holds."""
        held = partition(self.settings.data, self.settings.federation.clients, self._seed)
        return sorted(set().union(*held))

    @property
    def _numbers(self) -> tuple[int, ...]:
        task = self.recipe.task
        assert isinstance(task, ClassificationTask)
        return class_numbers(list_images(self.settings.data), task.num_classes, task.labels_named, False)

    @cached_property
    def _private(self) -> tuple[Tensor, Tensor]:
        return self._decoded(self._held)

    def _decoded(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Those of the images that can be read, [N,C,H,W] in [0, 1], and their classes int64 [N]."""
        images = list_images(self.settings.data)
        sound = list(filter(images.is_sound, indices))
        labels = torch.tensor([self._numbers[index] for index in sound], dtype=torch.long)
        if not sound:
            return torch.empty(0, *self.recipe.image_shape), labels
        return (images.decode(sound, self.recipe.image_shape[0]) + 1) / 2, labels
