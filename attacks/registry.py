"""Attacks by name.

A new one is registered with an entry point of group ``fl_sim.attacks`` from another package, or here.
"""

from collections.abc import Mapping
from typing import Any

from attacks.attack import Attack, AttackError
from fl_sim.registry import Registry

ATTACKS: Registry[Attack] = Registry(
    kind="attack",
    base=Attack,  # type: ignore[type-abstract]
    built_in={
        "dlg": "attacks.published.dlg:DLG",
        "gidm": "attacks.published.gidm:GIDM",
        "gidm-plus": "attacks.published.gidm_plus:GIDMPlus",
        "inverting-gradients": "attacks.published.inverting_gradients:InvertingGradients",
        "residual": "attacks.residual:Residual",
    },
    group="fl_sim.attacks",
    error=AttackError,
)


def create(name: str, arguments: Mapping[str, Any] | None = None, table: str | None = None) -> Attack:
    """The attack ``name``, or the one at a path ``package.module:Class``, with its arguments.

    ``table``: of settings, such as "attack", from which all this came and which errors are to speak of.

    Raises:
        AttackError: naming the attack or the argument that is wrong and what is allowed.
    """
    return ATTACKS.create(name, arguments, None if table is None else f"{table}.args.{name}")
