"""The benchmark's classifying victims: clients whose classifier learns from digits or from crops of photographs.

Digits have their own ten classes. A crop of a photograph has one of a hundred labels, drawn at random. An untrained
classifier knows no relation between label and image; a trained one learned random labels of other photographs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from attacks.observation import Circumstances, Observation
from experiments.bench.victims import DEFENCES, PHOTOGRAPHS, Update
from experiments.classifier_training import fit
from fl_sim import classification
from fl_sim.classification import ClassificationTask
from fl_sim.config import DataSettings
from fl_sim.draws import derive_seed, draw_image_indices, seeded_generator
from fl_sim.images.image_set import ImageSet
from fl_sim.images.sources import list_images
from fl_sim.network import build_model

TRAINING_STEPS = 100
"""Steps of Adam behind a trained classifier; digits are then told apart to 65 % (LeNet), 94 % and 92 %."""
TRAINING_BATCH = 32
CLASSES = {"digits": 10, "photographs": 100}


class ClassifierCase(BaseModel):
    """One client's gradient of a classifier.

    Attributes:
        labels: of a batch; "distinct": every label once; "repeated": drawn from half as many classes as images.
        defence: what is done to the gradient before it is sent (experiments/bench/victims.py), ``strength`` how much.
        defence_known: whether the attacker knows of the defence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classifier: Literal["LeNet", "ConvNet", "ResNet"] = "LeNet"
    model: Literal["untrained", "trained"] = "untrained"
    data: Literal["digits", "photographs"] = "digits"
    image_size: int = 16
    batch_size: int = 1
    labels: Literal["distinct", "repeated"] = "distinct"
    defence: Literal["none", "noise", "clip", "top-k", "signs"] = "none"
    strength: float = 0.0
    defence_known: bool = True

    def __str__(self) -> str:
        batch = f"B = {self.batch_size}" + (f", {self.labels} labels" if self.batch_size > 1 else "")
        amount = f" {100 * self.strength:.0f} %" if self.strength else ""
        defence = f", {self.defence}{amount}" if self.defence != "none" else ""
        unknown = "" if self.defence_known else ", defence unknown"
        side = self.image_size
        return f"{self.model} {self.classifier}, {self.data} {side}x{side}, {batch}{defence}{unknown}"

    @property
    def network(self) -> dict[str, object]:
        """The classifier's configuration."""
        channels = 1 if self.data == "digits" else 3
        shape = {"image_size": [self.image_size] * 2, "in_channels": channels}
        return {"_class_name": self.classifier, "num_classes": CLASSES[self.data], **shape}


@dataclass(frozen=True)
class ClassifyingVictim:
    """What the server sees of a client, and the truth: images float32 [N,C,H,W] in [0, 1] and labels int64 [N]."""

    observation: Observation
    images: Tensor
    labels: Tensor


def make_classifying_victim(case: ClassifierCase, seed: int, index: int) -> ClassifyingVictim:
    """Victim ``index`` of a case; its labels are private.

    Images, labels and untrained weights are drawn from ``seed``; classifiers are trained from ``seed`` too.
    """
    images, labels = _draw(case, seed, index)
    weights = _weights(case, seed, index)
    model = build_model(case.network)
    model.load_state_dict(weights)
    update, _ = classification.gradient_and_loss(model, images, labels)
    defence = None
    if case.defence != "none":
        generator = seeded_generator(derive_seed(seed, "defence", index))
        update, defence = DEFENCES[case.defence](update, case.strength, generator)
    circumstances = Circumstances(
        task=ClassificationTask(num_classes=CLASSES[case.data]),
        round=1,
        client=index,
        num_examples=case.batch_size,
        batch_size=case.batch_size,
        defence=defence if case.defence_known else None,
        image_shape=tuple(images.shape[1:]),
        model=case.network,
    )
    return ClassifyingVictim(Observation(circumstances, weights, update), (images + 1) / 2, labels)


def _draw(case: ClassifierCase, seed: int, index: int) -> tuple[Tensor, Tensor]:
    """The victim's images [N,C,H,W] in [-1, 1] and labels [N]."""
    generator = seeded_generator(derive_seed(seed, "labels", case.data, case.labels, case.batch_size, index))
    kinds = case.batch_size if case.labels == "distinct" else max(case.batch_size // 2, 1)
    chosen = torch.randperm(CLASSES[case.data], generator=generator)[:kinds]
    labels = chosen[torch.randint(len(chosen), (case.batch_size,), generator=generator)]
    if case.labels == "distinct":
        labels = chosen
    held = _held_out(case)
    if case.data == "photographs":
        dealt = draw_image_indices(derive_seed(seed, "images"), case.batch_size * (index + 1), len(held))
        return held.decode(dealt[-case.batch_size :].tolist(), 3), labels
    shown = torch.tensor([held.class_of(place) for place in range(len(held))])
    half = torch.arange(len(held)) >= len(held) // 2
    places = [
        of_class[torch.randint(len(of_class), (), generator=generator)]
        for of_class in ((half & (shown == label)).nonzero().flatten() for label in labels)
    ]
    return held.decode(torch.stack(places).tolist(), 1), labels


def _held_out(case: ClassifierCase) -> ImageSet:
    """Images of which no classifier has seen those in the second half, or any of photographs."""
    size = (case.image_size, case.image_size)
    if case.data == "digits":
        return list_images(DataSettings(name="digits", image_size=size))
    return list_images(DataSettings(photographs=PHOTOGRAPHS, image_size=size))


def _weights(case: ClassifierCase, seed: int, index: int) -> Update:
    if case.model == "trained":
        return _trained(case.model_copy(update={"batch_size": 1, "labels": "distinct", "defence": "none"}), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights", case.classifier, case.data, index))
        return build_model(case.network).state_dict()


@cache
def _trained(case: ClassifierCase, seed: int) -> Update:
    """Weights after TRAINING_STEPS steps on the first half of the digits, or on photographs that are no victim's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights", case.classifier, case.data))
        model = build_model(case.network)
    fit(model, _training_batches(case, seed))
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _training_batches(case: ClassifierCase, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = seeded_generator(derive_seed(seed, "training", case.data))
    if case.data == "digits":
        held = _held_out(case)
        images = held.decode(range(len(held) // 2), 1)
        labels = torch.tensor([held.class_of(place) for place in range(len(held) // 2)])
    else:
        held = list_images(DataSettings(image_size=(case.image_size, case.image_size)))
        images = held.decode(range(len(held)), 3)
        labels = torch.randint(CLASSES[case.data], (len(held),), generator=generator)
    for _ in range(TRAINING_STEPS):
        batch = torch.randint(len(images), (TRAINING_BATCH,), generator=generator)
        yield images[batch], labels[batch]
