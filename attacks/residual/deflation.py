"""Some samples of a batch alone, on what the other samples leave of the gradient.

The gradient is a sum over the samples, g* = sum_i g_i. The gradients of samples that are nearly right are subtracted,
as a known eigenvalue is deflated, and the free samples are searched for while the others stay as they are:

    D(sum_{i free} g_i(u_i), g* - sum_{i not free} g_i(u_i)).

Samples at late timesteps have small gradients. Together with early ones they are lost in the errors of those. Alone
they are balanced among themselves, and as easy as any small batch. What is subtracted is not exact, so the deflated
gradient has an error. In the end all samples are searched for together again.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from attacks.inversion.entry_weights import balanced_weights
from attacks.inversion.gradient_matching import GradientMatching, weighted_squared_error
from attacks.inversion.lbfgs import LBFGSRun
from attacks.residual.minimiser import Candidate
from attacks.residual.sample_diagnostics import unexplained_energy


def can_be_deflated(candidate: Candidate) -> bool:
    """Whether what is matched is a sum over the samples: a gradient of known scale, without simulated steps."""
    return isinstance(candidate.matching, GradientMatching) and candidate.minimiser.problem.scale_known


def deflation_error(own: Tensor, observed: Tensor, free: Tensor) -> float:
    """Squared error of what would be subtracted, relative to the square of what would be left.

    Args:
        own: each sample's share of the time projections' gradient, [D,N] (attacks/residual/sample_diagnostics.py).
        observed: each sample's share of the observed one, [D,N].
        free: the samples to search for, bool [N].
    """
    return float(unexplained_energy(own, observed)[~free].sum() / observed[:, free].square().sum())


def deflated_run(candidate: Candidate, start: Sequence[Tensor], free: Tensor) -> LBFGSRun:
    """A search from ``start``, the point of all samples, that moves the ``free`` ones alone, bool [N]."""
    minimiser, unknowns, problem = candidate.minimiser, candidate.unknowns, candidate.minimiser.problem

    def loss_of(samples: Tensor, point: Sequence[Tensor]) -> Tensor:
        return unknowns.step_loss(samples, point) * (len(samples) / problem.samples)

    fixed, left = (~free).nonzero().flatten(), free.nonzero().flatten()
    others = GradientMatching(problem, partial(loss_of, fixed)).gradient(start)
    observed = {name: value - others[name] for name, value in problem.gradient.items()}
    distance = weighted_squared_error(balanced_weights(observed, problem.std, minimiser.layer_balance_power))
    alone = GradientMatching(problem, partial(loss_of, left), distance, minimiser.derivative, unknowns.images, observed)
    return LBFGSRun(alone, start, candidate.history)
