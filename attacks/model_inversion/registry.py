"""Model inversions by name.

A new one is registered with an entry point of group ``fl_sim.inversions`` from another package, or here.
"""

from attacks.attack import AttackError
from attacks.model_inversion.model_inversion import ModelInversion
from fl_sim.registry import Registry

INVERSIONS: Registry[ModelInversion] = Registry(
    kind="model inversion",
    base=ModelInversion,  # type: ignore[type-abstract]  # mypy takes no abstract class; find() lets none through
    built_in={
        "diff-mi": "attacks.model_inversion.diff_mi:DiffMI",
        "max-margin": "attacks.model_inversion.max_margin:MaxMargin",
    },
    group="fl_sim.inversions",
    error=AttackError,
    arguments="args.{name}",
)

create = INVERSIONS.create
