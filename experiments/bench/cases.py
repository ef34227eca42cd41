"""What the benchmark measures: cases, and the attacks that are compared.

A case says everything about a client's update and about what the attacker knows of it. A case and an attack make a
cell of the benchmark, which is measured on several victims.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from attacks.attack import Needs
from attacks.observation import ThreatModel
from attacks.registry import ATTACKS
from fl_sim.diffusion import KNOWN_NETWORKS
from fl_sim.network import FACTORY, LocalOptimizer, unet_config

CLASS_CONDITIONAL = "16-classes"
"""The network that takes labels, of ten classes; else it is the smallest one."""

OWN_NETWORK = "lucidrains"
"""The U-Net of the package denoising-diffusion-pytorch, as large as the authors of GIDM have it; not diffusers'."""

NETWORKS: dict[str, dict[str, Any]] = {
    "16": KNOWN_NETWORKS["small"],
    CLASS_CONDITIONAL: KNOWN_NETWORKS["small"] | {"num_class_embeds": 10},
    "28-grey": unet_config(28, channels=1),
    "28-grey-deep": unet_config(28, channels=1, block_out_channels=(32, 64, 128)),
    "32-narrow": unet_config(32),
    "32-deep": unet_config(32, block_out_channels=(32, 64, 128)),
    "32": unet_config(32, block_out_channels=(64, 128), layers_per_block=2),
    "32-wide": KNOWN_NETWORKS["three-levels"],
    "64-narrow": unet_config(64, block_out_channels=(32, 64, 128, 256)),
    "ddpm-cifar10": KNOWN_NETWORKS["ddpm-cifar10"],
    OWN_NETWORK: {FACTORY: "denoising_diffusion_pytorch:Unet", "dim": 64, "dim_mults": [1, 2, 4, 8]},
    "64": KNOWN_NETWORKS["paper"],
    "128": KNOWN_NETWORKS["paper"] | {"sample_size": 128},
}
"""U-Nets by the side of the images they take, from 0.6 to 56 million parameters; the cheap ones come first."""

IMAGES_OF_OWN_NETWORK = (3, 32, 32)
"""Shape [C,H,W] of the images for a network that does not say it."""

KNOWN, PRIVATE = ThreatModel.KNOWN, ThreatModel.PRIVATE


class Case(BaseModel):
    """One client's update, or the sum of several, and what the attacker knows of how it came about.

    Attributes:
        prediction_type: of an untrained network.
        images: what clients hold, as ``data.name`` in the settings.
        timesteps: first and last of those that are drawn from, uniformly.
        optimizer: of the local steps whose weight delta is sent; None if the gradient is.
        defence: what is done to the update before it is sent (experiments/bench/victims.py), ``strength`` how much.
        defence_known: whether the attacker knows of the defence.
        dtype: of the numbers that are sent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    network: str = "16"
    model: Literal["untrained", "trained"] = "trained"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    images: Literal["bundled", "digits"] = "bundled"
    timesteps: tuple[int, int] = (0, 800)
    threat: ThreatModel = PRIVATE
    batch_size: int = 1
    local_steps: int = 1
    num_clients: int = 1
    optimizer: LocalOptimizer | None = None
    defence: Literal["none", "noise", "clip", "top-k", "signs"] = "none"
    strength: float = 0.0
    defence_known: bool = True
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

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
        Contender("residual-1000", "residual", {"max_evaluations": 1000}),
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
