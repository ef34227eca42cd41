from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel

from attacks.attack import AttackError
from attacks.model_inversion import diff_mi as module
from attacks.model_inversion.diff_mi import DiffMI
from attacks.model_inversion.image_search import ImageSearch
from attacks.model_inversion.registry import INVERSIONS, create
from attacks.model_inversion.target import Target
from tests.attacks.model_inversion.conftest import TINY, diff_mi, public_images, tiny_classifier

ALL = get_args(DiffMI.model_fields["variant"].annotation)


@pytest.mark.parametrize("arguments", [{}, {"pgd": {"iterations": 2}}, {"variant": "public-images"}])
def test_the_same_inputs_give_the_same_images_bit_for_bit(arguments: dict) -> None:
    one, again, other = (
        diff_mi(**arguments).reconstruct(tiny_classifier(), public_images(), seed) for seed in (5, 5, 6)
    )
    assert one.images.shape == (3, 2, 1, 8, 8)
    assert 0 <= one.images.min() < one.images.max() <= 1
    assert torch.equal(one.images, again.images)
    assert one.evaluations == again.evaluations
    assert torch.equal(one.images, other.images) is (arguments.get("variant") == "public-images")


def test_what_is_shared_changes_neither_images_nor_evaluations(target: Target) -> None:
    for variant in ("full", "prior-only"):
        alone = diff_mi(variant=variant).reconstruct(tiny_classifier(), public_images(), 3)
        shared = diff_mi(variant=variant).invert(target)
        assert torch.equal(alone.images, shared.images)
        assert alone.evaluations == shared.evaluations


def test_the_global_generator_is_left_alone(target: Target) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    diff_mi().invert(target)
    assert torch.equal(torch.rand(3), expected)


def test_every_variant_leaves_out_what_its_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def watch(owner: object, name: str, note: Callable[..., str]) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: ran.append(note(*args)) or original(*args))

    watch(module, "train_prior", lambda *_: "training")
    watch(module, "fine_tune", lambda *_: "fine-tuning")
    watch(module, "ddim", lambda *_: "sampling")
    watch(ImageSearch, "run", lambda *args: args[4])
    seen = {}
    for variant in ALL:
        ran.clear()
        diff_mi(variant=variant).reconstruct(tiny_classifier(), public_images(), 3)
        seen[variant] = list(ran)
    assert seen == {
        "full": ["training", "fine-tuning", "both"],
        "no-fine-tuning": ["training", "both"],
        "prior-only": ["training", "fine-tuning", "prior"],
        "classifier-only": ["training", "fine-tuning", "classifier"],
        "sampling-only": ["training", "fine-tuning", "sampling"],
        "plain-sampling": ["training", "sampling"],
        "public-images": [],
    }


def test_public_images_are_the_most_confident_of_the_classes_asked_for(target: Target) -> None:
    found = diff_mi(variant="public-images", classes=(2, 0)).invert(target)
    assert found.classes.tolist() == [2, 0]
    for place, number in enumerate((2, 0)):
        order = target.public_logits.log_softmax(1)[:, number].argsort(descending=True)
        torch.testing.assert_close(found.images[place], (target.public[order[:2]] + 1) / 2)


def test_classes_and_images_that_are_not_there_are_one_line(target: Target) -> None:
    with pytest.raises(AttackError, match="classes = 3; the classifier has 3, allowed: 0 to 2"):
        diff_mi(classes=(1, 3)).invert(target)
    with pytest.raises(AttackError, match="images_per_class = 5: variant 'public-images' has 4"):
        diff_mi(variant="public-images", images_per_class=5).invert(target)


def test_a_search_that_runs_away_is_one_line(target: Target) -> None:
    with pytest.raises(AttackError, match="'diff-mi' ran away to numbers that are not finite"):
        diff_mi(training={**TINY["training"], "lr": 1e30}).invert(target)


def test_a_recipe_sets_what_is_not_given() -> None:
    published, digits = DiffMI(recipe="published"), DiffMI()
    assert published.training.steps == 50_000
    assert published.image_search.augmentation.blur_radius == 3
    assert digits.training.steps == 250
    assert digits.training.unet == {}
    part = DiffMI(recipe="published", training={"steps": 7}, image_search={"augmentation": {"copies": 1}})
    assert (part.training.steps, part.training.batch_size) == (7, 300)
    assert (part.image_search.augmentation.copies, part.image_search.augmentation.blur_radius) == (1, 3)
    assert DiffMI(**digits.model_dump()) == digits
    assert DiffMI(**published.model_dump()) == published


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("dif-mi", {}, "model inversion 'dif-mi': unknown; .*did you mean 'diff-mi'?"),
        ("diff-mi", {"variant": "all"}, "variant = 'all': input should be 'full', "),
        ("diff-mi", {"image_search": {"iteration": 3}}, "iteration = 3: unknown argument; .*did you mean 'iterations'"),
        ("diff-mi", {"image_search": {"augmentation": {"copies": 0}}}, "augmentation.copies = 0"),
        ("diff-mi", {"recipe": ["digits"]}, r"recipe = \['digits'\]"),
        ("diff-mi", {"training": 3}, "training = 3"),
        ("max-margin", {"images_per_class": 0}, "images_per_class = 0"),
    ],
)
def test_wrong_arguments_are_one_line(name: str, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(AttackError, match=complaint) as raised:
        create(name, arguments)
    assert "\n" not in str(raised.value)


def test_every_model_inversion_says_what_its_arguments_are() -> None:
    assert INVERSIONS.names() == ["diff-mi", "max-margin"]
    for name in INVERSIONS.names():
        tables = [INVERSIONS.find(name)]
        for table in tables:
            for field in table.model_fields.values():
                if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                    tables.append(field.annotation)
                else:
                    assert field.description
