"""Which samples of a batch are not found yet, and which were found in each other's place.

The weight gradient of the time projections is dW = sum_i s_i h(t_i)^T. Once the timesteps are known all h(t_i) are, and
with their pseudo-inverse dW falls apart into the samples' own vectors s_i. The network does much the same at nearby
timesteps, so a search may find an image at another one's timestep and stay there. The vectors show it.
"""

from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.inversion.problem import InversionProblem
from attacks.timesteps.time_layers import by_output, time_projections


def sample_vectors(
    problem: InversionProblem, timesteps: Tensor, gradient: Mapping[str, Tensor], labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """s_i of every sample in ``gradient``, and in the observed gradient; each float64 [D,N], on the CPU.

    D is 0 where the time projections were not observed. ``labels`` int64 [N] are the samples', where the network takes
    them. Samples that share a timestep, and a label, get the mean of their vectors.
    Entries that were not sent are left out of both gradients, which agree then wherever the samples do.
    """
    projections = time_projections(problem, timesteps, labels)
    layers = [] if projections is None else projections.layers
    sent = {layer: known for layer in layers if (known := _sent_entries(problem, f"{layer}.weight")).any()}
    if projections is None or not sent:
        nothing = torch.empty(0, len(timesteps), dtype=torch.float64)
        return nothing, nothing
    inverse = torch.linalg.pinv(projections.inputs)
    own, observed = (
        torch.cat(
            [by_output(problem, layer, g[f"{layer}.weight"] * known).double().cpu() for layer, known in sent.items()]
        )
        @ inverse
        for g in (gradient, problem.gradient)
    )
    return own, observed


def _sent_entries(problem: InversionProblem, weight: str) -> Tensor:
    """Which entries of a weight's gradient were sent; none where all are zero, as an adapter's at first."""
    if weight not in problem.gradient or not problem.gradient[weight].any():
        return torch.zeros(1, dtype=torch.bool)
    return problem.std[weight].isfinite()


def cosine_matrix(own: Tensor, observed: Tensor) -> Tensor:
    """cos^2(own_i, observed_j), float64 [N,N], of vectors [D,N]; the unit matrix if D = 0."""
    if not len(own):
        return torch.eye(own.shape[1], dtype=torch.float64)
    own, observed = (torch.nn.functional.normalize(vectors, dim=0) for vectors in (own, observed))
    return (own.T @ observed).square()


def sample_misfits(own: Tensor, observed: Tensor) -> Tensor:
    """sin^2(own_i, observed_i), [N], of vectors [D,N]: 0 where a sample fits, whatever its scale."""
    return 1 - cosine_matrix(own, observed).diagonal()


def unexplained_energy(own: Tensor, observed: Tensor) -> Tensor:
    """sin^2(own_i, observed_i) |observed_i|^2, [N]: what is missing of every sample.

    A sample with a large residual that is slightly wrong keeps those with small ones from being found at all.
    """
    return sample_misfits(own, observed) * observed.square().sum(dim=0)


def best_permutation(cosines: Tensor, gain: float) -> Tensor | None:
    """The place of every sample, int64 [N], that maximises the sum of ``cosines`` [N,N].

    None if the samples' own places come within ``gain`` of it.
    """
    _, places = linear_sum_assignment(cosines.numpy(), maximize=True)
    belongs = torch.from_numpy(places)
    gained = cosines[torch.arange(len(belongs)), belongs].sum() - cosines.diagonal().sum()
    return belongs if gained > gain else None
