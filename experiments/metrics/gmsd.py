"""GMSD: gradient magnitude similarity deviation (Xue et al. 2014, arXiv 1308.3052, eq. 4 to 6)."""

from typing import ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from experiments.metrics.metric import Metric


class GMSD(Metric):
    """How unevenly edges differ: the standard deviation of the similarity of gradients."""

    better: ClassVar[Literal["larger", "smaller"]] = "smaller"
    range: ClassVar[str] = "0 (equal) to about 0.5"
    definition: ClassVar[str] = (
        "standard deviation over pixels of the similarity of Prewitt gradients of luminance, constant 170 / 255^2, "
        "after a mean over 2x2 pixels; small images as they are"
    )

    @override
    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        from piq import gmsd

        values: Tensor = gmsd(first, second, data_range=1.0, reduction="none")
        return values
