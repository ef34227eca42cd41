"""Differential privacy of Gaussian noise, by Opacus' Rényi accountant (Mironov 2017, arXiv 1702.07476)."""

import math
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class Privacy:
    """(epsilon, delta)-differential privacy (Dwork and Roth 2014, definition 2.4) of one client over all its rounds."""

    epsilon: float
    delta: float


def gaussian_privacy(noise_multiplier: float, steps: int, delta: float, sampling_rate: float = 1.0) -> Privacy:
    """The (epsilon, delta) of ``steps`` Gaussian mechanisms together.

    Args:
        noise_multiplier: standard deviation of the noise over the sensitivity; 0 leaves no privacy at all.
        steps: how many mechanisms.
        delta: the probability with which epsilon may fail to hold.
        sampling_rate: the probability with which a step uses an element, drawn independently (Poisson sampling).
    """
    # Imported late: it brings in all of Opacus, and only noise needs it.
    from opacus.accountants import RDPAccountant

    if noise_multiplier == 0:
        return Privacy(math.inf if steps else 0.0, delta)
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, sampling_rate, steps)] if steps else []
    with warnings.catch_warnings():
        # With little noise the best order lies outside Opacus' list; its epsilon is still an upper bound.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return Privacy(accountant.get_epsilon(delta), delta)
