"""MS-SSIM: structural similarity at five scales (Wang, Simoncelli and Bovik 2003, eq. 7)."""

from typing import ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from experiments.metrics.enlarging import enlarge
from experiments.metrics.metric import Metric
from experiments.metrics.ssim import SIGMA, WINDOW

SIDE = WINDOW * 2**4
"""The shortest side in pixels of which the fifth scale has a whole window."""


class MultiScaleSSIM(Metric):
    """Structural similarity at five scales, each half of the one before."""

    better: ClassVar[Literal["larger", "smaller"]] = "larger"
    range: ClassVar[str] = "0 to 1 (equal)"
    definition: ClassVar[str] = (
        f"product over five scales of SSIM's terms, window and sigma as in SSIM, the paper's exponents, mean over "
        f"channels; images whose shorter side is under {SIDE} px are enlarged until it is {SIDE} px long (bicubic)"
    )

    @override
    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        from piq import multi_scale_ssim

        # In float32, which is twenty times as fast here and right to 1e-5.
        pair = enlarge(first.float(), SIDE), enlarge(second.float(), SIDE)
        values: Tensor = multi_scale_ssim(
            *pair, kernel_size=WINDOW, kernel_sigma=SIGMA, data_range=1.0, reduction="none"
        )
        return values
