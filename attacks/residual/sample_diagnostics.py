"""Which samples of a batch are not found yet, and which sit in each other's place.

In the time projections' weight gradient, dW = sum_i s_i h(t_i)^T, all h(t_i) are known once the timesteps are, and with
their pseudo-inverse it falls apart into the samples' own vectors s_i. The network does much the same at timesteps that
are close, and a search may find an image at the timestep of another one, where it stays: then the vectors tell.
"""

from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.inversion.problem import InversionProblem
from attacks.timesteps.time_layers import time_projection_inputs

FITS = 1e-2
"""Misfit below which a sample is on its way, if slowly; those that are stuck have 0.4 to 0.9."""
_CLEARLY = 0.5
"""By how much all squared cosines together are larger where samples have changed places."""


def sample_vectors(
    problem: InversionProblem, timesteps: Tensor, gradient: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Every sample's own vector s_i in ``gradient``, and in the observed one, each float64 [D,N] on the CPU.

    D is 0 where the time projections were not observed. Samples that share a timestep have the mean of theirs. Entries
    that were not revealed are left out of both, which then still agree where the samples do.
    """
    names = (name for name in problem.gradient if name.endswith("time_emb_proj.weight"))
    revealed = {name: seen for name in names if (seen := problem.uncertainty[name].isfinite()).any()}
    if not revealed:
        nothing = torch.empty(0, len(timesteps), dtype=torch.float64)
        return nothing, nothing
    inverse = torch.linalg.pinv(time_projection_inputs(problem.model, timesteps))
    own, observed = (
        torch.cat([(g[name] * seen).double().cpu() for name, seen in revealed.items()]) @ inverse
        for g in (gradient, problem.gradient)
    )
    return own, observed


def sample_likeness(own: Tensor, observed: Tensor) -> Tensor:
    """Squared cosine between ``own`` vector i and ``observed`` vector j, each [D,N]; [N,N], the unit matrix if D=0."""
    if not len(own):
        return torch.eye(own.shape[1], dtype=torch.float64)
    own, observed = (torch.nn.functional.normalize(vectors, dim=0) for vectors in (own, observed))
    return (own.T @ observed).square()


def sample_misfits(own: Tensor, observed: Tensor) -> Tensor:
    """How badly each sample fits, [N]: the squared sine between its vectors, each [D,N]. The scale does not count."""
    return 1 - sample_likeness(own, observed).diagonal()


def unexplained(own: Tensor, observed: Tensor) -> Tensor:
    """How much of each observed vector is not along the sample's own, [N]: misfit times squared length.

    A sample with a large residual that is a little wrong keeps those with small ones from being found at all.
    """
    return sample_misfits(own, observed) * observed.square().sum(dim=0)


def better_places(likeness: Tensor) -> Tensor | None:
    """Where sample i belongs, int64 [N]; None where they sit as well as anywhere."""
    _, places = linear_sum_assignment(likeness.numpy(), maximize=True)
    belongs = torch.from_numpy(places)
    gain = likeness[torch.arange(len(belongs)), belongs].sum() - likeness.diagonal().sum()
    return belongs if gain > _CLEARLY else None
