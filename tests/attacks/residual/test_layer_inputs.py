"""The input of a convolution in closed form."""

import pytest
import torch
from torch.nn.functional import unfold

from attacks.residual.layer_inputs import determined_inputs

SIZE, CHANNELS, OUTPUTS = 4, 12, 40


def made(samples: int, kernel: int = 3, stride: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches H [N,pK] of random images, a basis of the rows of a gradient D^T H, and the pixels that are seen."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64)
    numbers = torch.arange(1.0, SIZE**2 + 1).view(1, 1, SIZE, SIZE)
    patches, pixels = (
        unfold(of, kernel, padding=kernel // 2, stride=stride).transpose(1, 2) for of in (images, numbers)
    )
    derivatives = torch.randn(OUTPUTS, samples * pixels.shape[1], generator=generator, dtype=torch.float64)
    _, _, rows = torch.linalg.svd(derivatives @ patches.flatten(0, 1), full_matrices=False)
    return patches.flatten(1), rows[: samples * pixels.shape[1]].T, pixels[0].long()


@pytest.mark.parametrize("samples", [1, 2])
def test_the_patches_of_the_images_span_what_is_found(samples):
    patches, row_space, pixels = made(samples)
    basis = determined_inputs(row_space, pixels, samples)
    assert basis is not None
    torch.testing.assert_close(basis @ basis.T, torch.eye(samples, dtype=torch.float64))
    assert (patches - patches @ basis.T @ basis).norm() < 1e-4 * patches.norm()


def test_a_single_image_is_found_up_to_scale_from_what_float32_leaves():
    patches, row_space, pixels = made(1)
    [found] = determined_inputs(row_space.float(), pixels, 1)
    assert abs(torch.nn.functional.cosine_similarity(found, patches[0], dim=0)) > 1 - 1e-6


def test_patches_that_hardly_overlap_leave_more_than_one_image():
    assert determined_inputs(*made(1, stride=2)[1:], 1) is None
    assert determined_inputs(*made(1, kernel=1)[1:], 1) is None


def test_rows_that_are_no_patches_of_an_image_give_none():
    _, row_space, pixels = made(1)
    other = torch.linalg.qr(torch.randn(row_space.shape, generator=torch.Generator().manual_seed(1)).double()).Q
    assert determined_inputs(other, pixels, 1) is None
