"""The moving average of the weights from which a diffusion model is usually sampled."""

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightAverage:
    """Exponential moving average of the global weights, kept on the server (arXiv 2006.11239, appendix B).

    For weights w_0, w_1, … it holds a_0 = w_0, a_k = decay a_{k-1} + (1 - decay) w_k. Entries that are no floating
    point numbers are the latest.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Take in the weights of one more round, or those before the first."""
        self.weights = {
            name: torch.lerp(value, self.weights[name], self.decay)
            if name in self.weights and value.is_floating_point()
            else value.clone()
            for name, value in weights.items()
        }
