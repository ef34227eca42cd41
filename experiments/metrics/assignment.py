"""Which reconstruction belongs to which original."""

from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(truth: Tensor, reconstructed: Tensor) -> list[int]:
    """For every true image [N,C,H,W] the index of its reconstruction: the permutation with the smallest total MSE."""
    differences = truth.double()[:, None] - reconstructed.double()[None]
    _, columns = linear_sum_assignment(differences.square().flatten(2).mean(2).numpy())
    return columns.tolist()
