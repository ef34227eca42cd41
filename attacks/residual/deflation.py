"""Some samples of a batch alone, on what the others leave of the gradient.

The gradient is a sum over the samples, g* = sum_i g_i. Of samples that are right in part the gradient is taken off, as
an eigenvalue that has been found is deflated, and the others are searched for while these stay as they are:

    D(sum_{i free} g_i(u_i), g* - sum_{i not free} g_i(u_i)).

Late samples have small gradients. Together with early ones they are lost among what those are still wrong by, and those
bend to make up for them; alone they are balanced among themselves, and as easy as any small batch. What is taken off is
not quite right, and spoils what is left. So all are searched for together again in the end.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from attacks.inversion.entry_weights import balanced_weights
from attacks.inversion.gradient_matching import Derivative, GradientMatching, weighted_squared_error
from attacks.inversion.lbfgs import LBFGSRun
from attacks.residual.sample_diagnostics import unexplained
from attacks.residual.unknowns import SpaceRun


def can_be_deflated(found: SpaceRun) -> bool:
    """Whether what is matched is a sum over the samples: a gradient of known scale, without simulated steps."""
    return isinstance(found.matching, GradientMatching) and found.space.problem.scale_known


def spoiled(own: Tensor, observed: Tensor, free: Tensor) -> float:
    """Squared error of what would be taken off, in parts of what would be left.

    Args:
        own: what every sample adds to the time projections' gradient, [D,N] (attacks/residual/sample_diagnostics.py).
        observed: what was observed of it, [D,N].
        free: which samples are searched for, bool [N].
    """
    return float(unexplained(own, observed)[~free].sum() / observed[:, free].square().sum())


def deflated_run(
    found: SpaceRun, start: Sequence[Tensor], free: Tensor, balance: float, derivative: Derivative
) -> LBFGSRun:
    """A search from ``start``, all samples' unknowns, that moves those of the ``free`` ones only, bool [N]."""
    space, problem = found.space, found.space.problem

    def loss_of(samples: Tensor, unknowns: Sequence[Tensor]) -> Tensor:
        return space.step_loss(samples, unknowns) * (len(samples) / problem.samples)

    taken, left = (~free).nonzero().flatten(), free.nonzero().flatten()
    others = GradientMatching(problem, partial(loss_of, taken)).gradient(start)
    observed = {name: value - others[name] for name, value in problem.gradient.items()}
    distance = weighted_squared_error(balanced_weights(observed, problem.uncertainty, balance))
    alone = GradientMatching(problem, partial(loss_of, left), distance, derivative, space.images, observed)
    return LBFGSRun(alone, start, found.history)
