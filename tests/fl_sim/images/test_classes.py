import pytest
from PIL import Image

from fl_sim.config import SettingsError
from fl_sim.images.classes import check_sound_classes, class_numbers, count_classes, order_classes
from fl_sim.images.image_set import ImageSet


def images(*labels: str) -> ImageSet:
    return ImageSet(
        (16, 16),
        labels,
        labels,
        "do something about it",
        lambda _: Image.new("L", (16, 16)),
        found=len(labels),
        classes=order_classes(labels),
    )


def test_names_are_numbered_in_alphabetical_order() -> None:
    assert class_numbers(images("dog", "cat", "dog", "eel"), 3, "num_class_embeds", null_class=False) == (1, 0, 1, 2)


def test_whole_numbers_keep_theirs_even_where_some_are_missing() -> None:
    assert class_numbers(images("10", "2", "7"), 11, "num_class_embeds", null_class=False) == (10, 2, 7)


@pytest.mark.parametrize("labels", [(), (".", ".")])
def test_images_without_labels_are_one_line(labels: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=r"num_class_embeds = 3: .* have none; do something about it"):
        class_numbers(images(*labels), 3, "num_class_embeds", null_class=False)


def test_more_classes_than_the_network_knows_are_one_line() -> None:
    with pytest.raises(SettingsError, match=r"num_class_embeds = 2: the images have 3 classes; allowed: at least 3$"):
        class_numbers(images("a", "b", "c"), 2, "num_class_embeds", null_class=False)
    with pytest.raises(SettingsError, match="3 classes; allowed: at least 4, of which the last is that of dropped"):
        class_numbers(images("a", "b", "c"), 3, "num_class_embeds", null_class=True)


def test_an_unlabelled_row_of_a_dataset_is_one_line() -> None:
    with pytest.raises(SettingsError, match="the label -1; allowed: whole numbers from 0"):
        class_numbers(images("1", "-1"), 3, "num_class_embeds", null_class=False)


def test_a_class_of_broken_images_alone_is_one_line() -> None:
    held = images("a", "b", "a", "b")
    held.broken[1] = "b/1.png: no image"
    check_sound_classes(held)
    held.broken[3] = "b/2.png: no image"
    with pytest.raises(SettingsError, match=r"class 'b' has no image that can be read: b/1\.png: no image$"):
        check_sound_classes(held)


def test_a_classifier_tells_all_classes_apart() -> None:
    assert count_classes(images("dog", "cat", "dog")) == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((), "task = 'classification': the network takes class labels, and the images have none; do something"),
        (("cat", "cat"), "all images are of one class, 'cat'; allowed: two classes at least; do something about it"),
        (("0", "2"), "class '1' has no image; allowed: one at least for each of 3 classes"),
        (("1", "-1"), "the label -1; allowed: whole numbers from 0"),
    ],
)
def test_classes_that_cannot_be_told_apart_are_one_line(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        count_classes(images(*labels))
    assert "\n" not in str(caught.value)
