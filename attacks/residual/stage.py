"""A stage of the residual attack: from a candidate and a budget to a candidate."""

from abc import ABC, abstractmethod

from pydantic import BaseModel, ConfigDict

from attacks.inversion.budget import Budget
from attacks.residual.minimiser import Candidate


class Stage(BaseModel, ABC):
    """One step of the attack; its fields are its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @abstractmethod
    def run(self, candidate: Candidate, budget: Budget) -> Candidate:
        """A candidate with a smaller matching loss, or the same one; spends about ``budget.left`` at most."""
