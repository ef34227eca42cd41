"""The squared error in the K-FAC metric, which shortens the end of a search.

The weight gradient of a convolution is D^T H (attacks/residual/subspace_init.py). Neighbouring pixels of its inputs are
alike, so the patches H hardly vary along the directions of high spatial frequency. Along these an error of D hardly
shows in the squared error, and a search takes long to remove it. The second moments B_l of a patch's positions are a
factor of the Fisher matrix in K-FAC for convolutions (arXiv 1602.01407). Who knows x_t about knows B_l, and can measure

    D = sum_l w_l <e_l, e_l B_l^-1>,    e_l = g_l - g*_l,

with weights w_l that balance the tensors as in attacks/inversion/entry_weights.py. Far from the solution this has more
local minima than the squared error.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attacks.inversion.entry_weights import balanced_weights, noise_floor
from attacks.inversion.gradient_matching import Distance
from attacks.inversion.problem import InversionProblem
from attacks.residual.conv_inputs import map_convolution_inputs


class KFACMetric(BaseModel):
    """When a search changes to the metric, and how the metric is regularised."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    below: float = Field(
        1e-2,
        gt=0,
        description="matching loss at which a candidate changes to it; single images that are stuck stay above",
    )
    damping: float = Field(0.1, gt=0, description="added to the second moments, relative to their mean")
    largest_noise: float = Field(
        1e-5, ge=0, description="matching loss that noise may leave; with more the metric would amplify the noise"
    )

    def applies_to(self, problem: InversionProblem) -> bool:
        """Whether the update is a complete gradient at the weights sent, of known scale, and exact or nearly so."""
        complete = all(std.isfinite().all() for std in problem.std.values())
        return complete and problem.scale_known and not problem.noisy and noise_floor(problem, 0.0) < self.largest_noise

    def distance(
        self,
        problem: InversionProblem,
        x_t: Tensor,
        timesteps: Tensor,
        layer_balance_power: float,
        labels: Tensor | None = None,
    ) -> Distance:
        """D above, scaled to 1 for g = 0, for noisy images near ``x_t`` [N,C,H,W] at ``timesteps`` int64 [N].

        ``labels`` int64 [N] are those of the images, where the network takes them.
        """

        def inverse_of(name: str, inputs: Tensor) -> Tensor | None:
            return self._inverse_moments(inputs, problem.gradient[name][0, 0].numel())

        with torch.no_grad():
            inverses = map_convolution_inputs(problem.model, x_t, timesteps, problem.gradient, inverse_of, labels)
        scaled = {
            name: value if (inverse := inverses.get(name)) is None else _times(value, torch.linalg.cholesky(inverse))
            for name, value in problem.gradient.items()
        }
        roots = balanced_weights(scaled, problem.std, layer_balance_power).sqrt()

        def distance(gradient: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
            error = roots * (gradient - observed)
            pieces = error.split([value.numel() for value in problem.gradient.values()])
            derivative = torch.cat(
                [
                    piece if (inverse := inverses.get(name)) is None else _times(piece, inverse)
                    for name, piece in zip(problem.gradient, pieces, strict=True)
                ]
            )
            return error @ derivative, 2 * roots * derivative

        return distance

    def _inverse_moments(self, inputs: Tensor, positions: int) -> Tensor | None:
        """B^-1 [k,k], with mean 1 on its diagonal, of a convolution's inputs [P, C k]; None where all are zero."""
        patches = inputs.reshape(-1, positions).double()
        moments = patches.T @ patches
        mean = moments.diagonal().mean()
        if positions == 1 or mean == 0:
            return None
        inverse = torch.linalg.inv(moments + self.damping * mean * torch.eye(positions, device=moments.device))
        return (inverse / inverse.diagonal().mean()).to(inputs.dtype)


def _times(values: Tensor, matrix: Tensor) -> Tensor:
    """Every patch of k values times a matrix [k,k]; the shape stays."""
    return (values.reshape(-1, len(matrix)) @ matrix).view_as(values)
