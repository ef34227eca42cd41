import pytest
import torch

from attacks.attack import AttackError
from attacks.model_inversion.target import Target, TrainedClassifier
from fl_sim.network import ConfigError
from tests.attacks.model_inversion.conftest import CONFIG, public_images, tiny_classifier


@pytest.mark.parametrize(
    ("public", "complaint"),
    [
        (torch.zeros(0, 1, 8, 8), r"shape \[0, 1, 8, 8\]; allowed: \[M,C,H,W\] with M from 1"),
        (torch.zeros(1, 8, 8), r"shape \[1, 8, 8\]"),
        (torch.full((1, 1, 8, 8), 2.0), "go from 2 to 2; allowed: -1 to 1"),
        (torch.full((1, 1, 8, 8), torch.nan), "go from nan to nan"),
        (torch.zeros(2, 3, 8, 8), r"the classifier takes no images of shape \[3, 8, 8\]"),
        (torch.zeros(2, 1, 16, 16), r"the classifier takes no images of shape \[1, 16, 16\]"),
    ],
)
def test_public_images_that_cannot_be_used_are_one_line(public: torch.Tensor, complaint: str) -> None:
    with pytest.raises(AttackError, match=complaint) as raised:
        Target(tiny_classifier(), public, seed=0)
    assert "\n" not in str(raised.value)


def test_weights_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(ConfigError, match="is missing"):
        TrainedClassifier(CONFIG, {}).build()


def test_it_counts_the_images_that_go_through_its_networks() -> None:
    target = Target(tiny_classifier(), public_images(12), seed=0)
    assert target.evaluations == 12
    target.classifier(public_images(5))
    assert target.evaluations == 17


def test_what_is_made_once_counts_whenever_it_is_asked_for() -> None:
    target = Target(tiny_classifier(), public_images(12), seed=0)
    made = [target.once("a", lambda: target.classifier(public_images(2))) for _ in range(3)]
    assert made[0] is made[2]
    assert target.evaluations == 12 + 3 * 2
    assert target.once("b", lambda: 7) == 7


def test_every_purpose_has_random_numbers_of_its_own() -> None:
    one, other = (Target(tiny_classifier(), public_images(), seed) for seed in (0, 1))
    drawn = [torch.randn(3, generator=g) for g in (one.generator("a"), one.generator("b"), other.generator("a"))]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[0], torch.randn(3, generator=one.generator("a")))
