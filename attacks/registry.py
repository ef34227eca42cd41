"""Attacks by name.

A new one is registered with an entry point of group ``fl_sim.attacks`` from another package, or here.
"""

from attacks.attack import Attack, AttackError
from fl_sim.registry import Registry

ATTACKS: Registry[Attack] = Registry(
    kind="attack",
    base=Attack,  # type: ignore[type-abstract]  # mypy takes no abstract class; find() lets none through
    built_in={
        "dlg": "attacks.published.dlg:DLG",
        "gidm": "attacks.published.gidm:GIDM",
        "gidm-plus": "attacks.published.gidm_plus:GIDMPlus",
        "gradient-guided-finetuning": "attacks.published.gradient_guided_finetuning:GradientGuidedFineTuning",
        "gradient-guided-sampling": "attacks.published.gradient_guided_sampling:GradientGuidedSampling",
        "inverting-gradients": "attacks.published.inverting_gradients:InvertingGradients",
        "residual": "attacks.residual:Residual",
        "user-level": "attacks.published.user_level:UserLevel",
    },
    group="fl_sim.attacks",
    error=AttackError,
    arguments="args.{name}",
)

create = ATTACKS.create
