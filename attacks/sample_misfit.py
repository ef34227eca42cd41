"""Which samples of a batch are not found yet, told by what each of them alone adds to the gradient.

In the time projections' weight gradient, dW = sum_i s_i h(t_i)^T, all h(t_i) are known once the timesteps are, and with
their pseudo-inverse it falls apart into the samples' own vectors s_i.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from attacks.problem import InversionProblem
from attacks.timestep_layers import time_projection_inputs

FITS = 1e-2
"""Misfit below which a sample is on its way, if slowly; those that are stuck have 0.4 to 0.9."""


def sample_misfits(problem: InversionProblem, timesteps: Tensor, gradient: Mapping[str, Tensor]) -> Tensor:
    """Squared sine between every sample's own vector in ``gradient`` and in the observed one, [N] on the CPU.

    0 for all where the time projections were not observed. The scale does not count, and neither does how the vectors
    of samples that share a timestep add up.
    """
    names = [name for name in problem.gradient if name.endswith("time_emb_proj.weight")]
    if not names:
        return torch.zeros(len(timesteps))
    inverse = torch.linalg.pinv(time_projection_inputs(problem.model, timesteps))
    own, observed = (
        torch.cat([g[name].double().cpu() for name in names]) @ inverse for g in (gradient, problem.gradient)
    )
    return 1 - torch.nn.functional.cosine_similarity(own, observed, dim=0).square()
