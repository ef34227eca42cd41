"""Candidates of the residual attack at points that a test chooses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attacks.inversion.gradient_matching import Matching
from attacks.inversion.problem import InversionProblem
from attacks.residual import Residual
from attacks.residual.minimiser import Candidate, Minimiser
from attacks.residual.unknowns import Unknowns
from tests.attacks.conftest import MODEL

WIDE = MODEL | {"block_out_channels": [32, 32]}


def minimiser_of(problem: InversionProblem, *possible: Unknowns, seed: int = 3, **arguments: Any) -> Minimiser:
    """The attack's own minimiser, for these unknowns."""
    return Residual(**arguments).minimiser(problem, possible, torch.Generator().manual_seed(seed))


def candidate_at(unknowns: Unknowns, point: Sequence[Tensor], **arguments: Any) -> Candidate:
    """A candidate that nobody has searched yet."""
    return minimiser_of(unknowns.problem, unknowns, **arguments).start(unknowns, point)


def matching_of(unknowns: Unknowns) -> Matching:
    """The attack's matching loss over these unknowns."""
    return minimiser_of(unknowns.problem, unknowns).matching(unknowns)
