"""SSIM: structural similarity (Wang et al. 2004, "Image quality assessment", eq. 13)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from experiments.metrics.metric import Metric

WINDOW = 11
SIGMA = 1.5


class SSIM(Metric):
    """Structural similarity, with the Gaussian window and the constants of its paper."""

    better: ClassVar[Literal["larger", "smaller"]] = "larger"
    range: ClassVar[str] = "-1 to 1 (equal)"
    definition: ClassVar[str] = (
        f"Gaussian window {WINDOW}x{WINDOW}, sigma {SIGMA}, data range 1, mean over whole windows"
    )

    @override
    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        from skimage.metrics import structural_similarity

        values = [
            structural_similarity(
                x.numpy(),
                y.numpy(),
                data_range=1,
                channel_axis=0,
                gaussian_weights=True,
                sigma=SIGMA,
                use_sample_covariance=False,
            )
            for x, y in zip(first, second, strict=True)
        ]
        return torch.tensor(values, dtype=torch.float64)
