"""The budget of an attack, counted in gradients of the training loss: the one measure of work, never seconds."""

import math
from dataclasses import dataclass, field, replace


@dataclass
class Counter:
    """How many gradients of the training loss an attack has computed so far."""

    evaluations: int = 0


@dataclass(frozen=True)
class Budget:
    """What an attack has spent, and what it may spend.

    One evaluation is one gradient of the training loss, together with the derivative of a matching loss where that is
    asked for. All budgets that come from one another share a counter.

    Attributes:
        limit: evaluations, counted from the start of the attack, at which this budget is used up.
        whole: evaluations of the whole attack, of which its stages get shares.
    """

    limit: float = math.inf
    whole: float = math.inf
    counter: Counter = field(default_factory=Counter)

    @property
    def spent(self) -> int:
        """Evaluations since the start of the attack."""
        return self.counter.evaluations

    @property
    def left(self) -> float:
        """Evaluations until the limit, at least 0."""
        return max(self.limit - self.spent, 0)

    def at_most(self, evaluations: int) -> int:
        """So many evaluations, or those that are left if they are fewer."""
        return int(min(evaluations, self.left))

    def spend(self, evaluations: int = 1) -> None:
        """Count so many evaluations."""
        self.counter.evaluations += evaluations

    def of(self, whole: int) -> "Budget":
        """The budget of an attack that may spend ``whole`` evaluations."""
        return replace(self, limit=whole, whole=whole)

    def until(self, limit: int) -> "Budget":
        """The budget of a stage that ends when the attack has spent ``limit`` evaluations."""
        return replace(self, limit=limit)

    def more(self, evaluations: int) -> "Budget":
        """A budget of so many evaluations from now on."""
        return self.until(self.spent + evaluations)

    def share(self, part: float) -> int:
        """A part, 0..1, of the whole attack's evaluations, rounded down."""
        return int(part * self.whole)
