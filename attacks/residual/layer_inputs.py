"""The input of a convolution in closed form, from its weight's gradient.

The weight gradient is G = D^T H, with the patches H [P,K] of the layer's input. Where its rows span what the rows of H
span, the patches of an image are H = M Q^T, with an orthonormal basis Q [K,P] of the rows of G and an unknown M. But
patches overlap, and a pixel is the same in all patches that see it. Let A put its mean over these patches in place of
every entry, and zero in place of padding. A is an orthogonal projection, and M Q^T are patches of an image if and only
if A leaves them as they are. So M is an eigenvector, with the eigenvalue 1, of

    M -> A(M Q^T) Q,

whose eigenvalues lie in 0..1. Shifts by a pixel and back, as a kernel with stride 1 sees them, leave nothing but the
scale of M open: T M has overlapping patches too only where T commutes with all shifts of positions. Of N samples the
eigenvalue 1 has N eigenvectors: the patches of every sample are a combination of them.
"""

import warnings

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lobpcg
from torch import Tensor

TOLERANCE = 1e-6
"""Norm of an eigenvector's residual at which it is found."""
ITERATIONS = 200
"""Most iterations; networks of three and four levels take 40 to 70."""
LARGEST_DEFECT = 1e-4
"""An eigenvalue counts as 1 if it lacks no more. Rounding leaves 1e-8; the next eigenvalues lack 1e-2 and more."""


def determined_inputs(row_space: Tensor, pixels: Tensor, samples: int) -> Tensor | None:
    """An orthonormal basis [N, p K] of the patches [p,K] that images have in this row space, float64.

    Args:
        row_space: Q [K,P], orthonormal, of a layer with P = N p positions.
        pixels: int64 [p,k], as in attacks/residual/conv_inputs.py.
        samples: N.

    Returns:
        None where the row space holds the patches of fewer or of more images.
    """
    (positions, kernel), dimensions = pixels.shape, row_space.shape[1]
    basis, unknowns = row_space.double(), positions * dimensions
    if kernel == 1 or unknowns <= 5 * (samples + 1):
        return None  # nothing overlaps, or it is too small for the solver

    def apply(columns: np.ndarray) -> np.ndarray:
        mixing = torch.from_numpy(columns.reshape(unknowns, -1)).to(basis).T.reshape(-1, positions, dimensions)
        return (_overlap(mixing @ basis.T, pixels) @ basis).reshape(-1, unknowns).T.cpu().numpy()

    start = np.random.default_rng(0).standard_normal((unknowns, samples + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it has not converged, which the eigenvalues show
        operator = LinearOperator((unknowns, unknowns), matvec=apply, matmat=apply, dtype=np.float64)
        values, vectors = lobpcg(operator, start, tol=TOLERANCE, maxiter=ITERATIONS)
    is_one = values > 1 - LARGEST_DEFECT
    if is_one.sum() != samples:
        return None
    mixing = torch.from_numpy(vectors[:, is_one]).to(basis).T.reshape(samples, positions, dimensions)
    return (mixing @ basis.T).flatten(1)


def _overlap(patches: Tensor, pixels: Tensor) -> Tensor:
    """A of patches [b,p,K]: the mean over all entries that see the same pixel, zero for padding."""
    batch, positions, width = patches.shape
    entries = pixels.flatten()
    rows = patches.view(batch, positions, -1, pixels.shape[1]).transpose(1, 2).flatten(2)
    counts = torch.bincount(entries)
    sums = rows.new_zeros(*rows.shape[:2], len(counts)).index_add_(2, entries, rows)
    means = sums / counts.clamp_min(1)
    means[..., 0] = 0
    return (
        means[..., entries].view(batch, -1, positions, pixels.shape[1]).transpose(1, 2).reshape(batch, positions, width)
    )
