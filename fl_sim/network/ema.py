"""The exponential moving average (EMA) of a client's weights over its local steps, as diffusers' ``EMAModel`` has it.

After step k = 1..K it is d_k ema + (1 - d_k) w_k, with d_1 = 0 and d_k = min(decay, k / (9 + k)) from then on: the
decay warms up, so that after few steps the average is not dominated by the initial weights.
"""


def ema_decays(decay: float | None, steps: int) -> list[float]:
    """d_1 ... d_K, as ``diffusers.training_utils.EMAModel`` with its defaults has them; all 0 without a ``decay``."""
    if decay is None:
        return [0.0] * steps
    return [0.0, *(min(decay, step / (9 + step)) for step in range(2, steps + 1))]


def ema_shares(decay: float | None, steps: int) -> list[float]:
    """c_1 ... c_K of the weights w_k in the average: c_k = (1 - d_k) prod_{j > k} d_j. They sum to 1.

    >>> ema_shares(None, 3)
    [0.0, 0.0, 1.0]
    """
    shares: list[float] = []
    for decay_now in ema_decays(decay, steps):
        shares = [share * decay_now for share in shares] + [1 - decay_now]
    return shares
