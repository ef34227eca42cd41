"""FSIM: feature similarity (Zhang et al. 2011, "FSIM: A Feature Similarity Index for Image Quality Assessment")."""

from typing import ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from experiments.metrics.enlarging import enlarge
from experiments.metrics.metric import Metric

SIDE = 64
"""Pixels of the shortest side that holds a wave of the largest filter, which is 48 px long."""


class FSIM(Metric):
    """Similarity of edges: of phase congruency and gradient, and in colour of chrominance (FSIMc)."""

    better: ClassVar[Literal["larger", "smaller"]] = "larger"
    range: ClassVar[str] = "0 to 1 (equal)"
    definition: ClassVar[str] = (
        "similarity of phase congruency (four scales from 6 px, four orientations) and Scharr gradient, in colour of "
        "chrominance too (FSIMc), weighted by phase congruency; images whose shorter side is under "
        f"{SIDE} px are enlarged until it is {SIDE} px long (bicubic)"
    )

    @override
    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        from piq import fsim

        pair = enlarge(first, SIDE), enlarge(second, SIDE)
        values: Tensor = fsim(*pair, data_range=1.0, chromatic=first.shape[1] == 3, reduction="none")
        return values
