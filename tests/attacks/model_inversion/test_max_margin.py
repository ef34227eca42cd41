import torch

from attacks.model_inversion.max_margin import MaxMargin
from attacks.model_inversion.target import Target
from tests.attacks.model_inversion.conftest import public_images, tiny_classifier


def test_the_classifier_takes_what_it_finds_for_the_class_and_it_repeats(target: Target) -> None:
    method = MaxMargin(images_per_class=2, iterations=30)
    found = method.invert(target)
    logits = target.classifier(found.images.flatten(0, 1) * 2 - 1)
    assert torch.equal(logits.argmax(1), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert torch.equal(found.images, method.reconstruct(tiny_classifier(), public_images(), 3).images)
    assert found.evaluations == 30 * 6 * 4
