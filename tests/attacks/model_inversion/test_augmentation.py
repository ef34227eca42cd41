import torch

from attacks.model_inversion.augmentation import Augmentation


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


IMAGES = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8


def test_without_changes_there_are_copies_of_all_in_turn() -> None:
    assert torch.equal(Augmentation(copies=2).apply(IMAGES, seeded()), torch.cat([IMAGES, IMAGES]))


def test_a_flip_mirrors_left_and_right() -> None:
    torch.testing.assert_close(Augmentation(flip=1).apply(IMAGES, seeded()), IMAGES.flip(-1))


def test_brightness_scales_pixels_between_0_and_1_and_is_clipped() -> None:
    changed = Augmentation(brightness=0.5).apply(IMAGES, seeded())
    factor = 0.5 + torch.rand(6, generator=seeded())[3:]  # the first three say whether
    expected = (factor[:, None, None, None] * (IMAGES + 1) - 1).clamp(-1, 1)
    torch.testing.assert_close(changed, expected)


def test_contrast_keeps_the_mean() -> None:
    changed = Augmentation(contrast=0.1).apply(0.5 * IMAGES, seeded())
    torch.testing.assert_close(changed.mean((1, 2, 3)), 0.5 * IMAGES.mean((1, 2, 3)))
    assert not torch.allclose(changed, 0.5 * IMAGES)


def test_a_blur_smooths() -> None:
    changed = Augmentation(blur_radius=1, blur_probability=1).apply(IMAGES, seeded())
    assert changed.var() < IMAGES.var() / 2


def test_a_crop_and_a_rotation_move_pixels_and_can_be_differentiated() -> None:
    images = IMAGES.clone().requires_grad_()
    changed = Augmentation(copies=2, least_crop=0.5, rotation=20).apply(images, seeded())
    assert changed.shape == (6, 1, 6, 6)
    assert not torch.allclose(changed[:3], changed[3:])
    (gradient,) = torch.autograd.grad(changed.sum(), images)
    assert (gradient != 0).any()
