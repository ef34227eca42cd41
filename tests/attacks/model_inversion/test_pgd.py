import torch

from attacks.model_inversion.pgd import PGD
from attacks.model_inversion.target import Target

LABELS = torch.tensor([0, 1, 2])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_it_comes_nearer_to_the_class_within_the_radius(target: Target) -> None:
    images = target.public[:3] * 0.5
    found = PGD(iterations=10).run(target, images, LABELS, seeded())
    assert ((found - images) / 2).flatten(1).norm(dim=1).max() <= 0.5 + 1e-5
    assert not torch.allclose(found, images)

    def probability(of: torch.Tensor) -> torch.Tensor:
        return target.classifier(of).softmax(1).gather(1, LABELS[:, None])

    assert (probability(found) > probability(images)).all()


def test_pixels_stay_in_their_range(target: Target) -> None:
    found = PGD(iterations=3, radius=5.0, step=3.0).run(target, target.public[:3].sign(), LABELS, seeded())
    assert found.abs().max() <= 1


def test_by_default_it_is_left_out(target: Target) -> None:
    assert PGD().run(target, target.public, LABELS, seeded()) is target.public
