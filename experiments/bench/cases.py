"""What the benchmark measures: cases, and the attacks that contend.

A case says everything about a client's update and about what the attacker knows of it. With a contender it makes a
cell of the benchmark, which is measured on several victims.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from attacks.attack import Needs
from attacks.observation import ThreatModel
from attacks.registry import ATTACKS
from fl_sim.diffusion import KNOWN_NETWORKS
from fl_sim.network import LocalOptimizer, unet_config

CLASS_CONDITIONAL = "16-classes"
"""The network that takes labels, of ten classes; else it is the smallest one."""

NETWORKS: dict[str, dict[str, Any]] = {
    "16": KNOWN_NETWORKS["small"],
    CLASS_CONDITIONAL: KNOWN_NETWORKS["small"] | {"num_class_embeds": 10},
    "32-narrow": unet_config(32),
    "32-deep": unet_config(32, block_out_channels=(32, 64, 128)),
    "32": unet_config(32, block_out_channels=(64, 128), layers_per_block=2),
    "32-wide": KNOWN_NETWORKS["three-levels"],
    "64": unet_config(64, block_out_channels=(128, 256, 384), layers_per_block=2),
    "128": unet_config(128, block_out_channels=(128, 256, 384), layers_per_block=2),
}
"""U-Nets of 0.6, 0.6, 0.6, 2.5, 3.6, 4.2, 38 and 38 million parameters, by the side of the images they take."""

GPU_NETWORKS = frozenset({"64", "128"})
"""Networks that are left out where there is no GPU."""

KNOWN, PRIVATE = ThreatModel.KNOWN, ThreatModel.PRIVATE


class Case(BaseModel):
    """One client's update, or the sum of several, and what the attacker knows of how it came about.

    Attributes:
        timesteps: first and last of those that are drawn from, uniformly.
        optimizer: of the local steps whose weight delta is sent; None if the gradient is.
        defence: what is done to the update before it is sent (experiments/bench/victims.py), ``strength`` how much.
        defence_known: whether the attacker knows of the defence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    network: str = "16"
    model: Literal["untrained", "trained"] = "trained"
    timesteps: tuple[int, int] = (0, 800)
    threat: ThreatModel = PRIVATE
    batch_size: int = 1
    local_steps: int = 1
    num_clients: int = 1
    optimizer: LocalOptimizer | None = None
    defence: Literal["none", "noise", "clip", "top-k", "signs"] = "none"
    strength: float = 0.0
    defence_known: bool = True

    @property
    def samples_per_client(self) -> int:
        """Images that one client trains on."""
        return self.batch_size * self.local_steps

    @property
    def samples(self) -> int:
        """Images behind the update."""
        return self.samples_per_client * self.num_clients


@dataclass(frozen=True)
class Contender:
    """An attack with its arguments, under the name that it has in the tables; the cheap ones are measured first."""

    name: str
    attack: str
    arguments: dict[str, Any] = field(default_factory=dict)
    cost: int = 0

    def applies(self, case: Case) -> bool:
        """Whether the threat model gives the attack what it needs; whatever else it refuses counts as a failure."""
        return case.threat is KNOWN or Needs.NOISE_AND_TIMESTEPS not in ATTACKS.find(self.attack).needs


_PUBLISHED = {"recipe": "published"}
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("residual", "residual"),
        Contender("dlg", "dlg"),
        Contender("gidm", "gidm", cost=1),
        Contender("gidm-latent", "gidm", {"phases": "latent"}, cost=1),
        Contender("gidm-pixels", "gidm", {"phases": "pixels"}, cost=1),
        Contender("gidm-plus", "gidm-plus", cost=1),
        Contender("inverting-gradients", "inverting-gradients", cost=1),
        Contender("inverting-gradients-short", "inverting-gradients", {"iterations": 600}, cost=1),
        Contender("gidm-pixels-published", "gidm", _PUBLISHED | {"phases": "pixels"}, cost=2),
        Contender("gidm-published", "gidm", _PUBLISHED, cost=2),
        Contender("gidm-plus-published", "gidm-plus", _PUBLISHED, cost=2),
    )
}
