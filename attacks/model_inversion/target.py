"""What a model inversion is given: a trained classifier, public images, a seed. It sees nothing else."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from attacks.attack import AttackError
from fl_sim import classification
from fl_sim.errors import message
from fl_sim.network import ConfigError, build_model, misfit

T = TypeVar("T")

BATCH = 256
"""Public images that go through the classifier at once."""


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier as the server holds it: its configuration (fl_sim/network) and its weights by name."""

    model: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    def build(self) -> nn.Module:
        """The network with these weights, frozen, in evaluation mode.

        Raises:
            ConfigError: if the network cannot be built or the weights do not fit it.
        """
        network = build_model(self.model)
        if reason := misfit(self.weights, network, network.state_dict()):
            raise ConfigError(reason)
        network.load_state_dict(dict(self.weights))
        return network.eval().requires_grad_(False)


class Target:
    """A classifier under attack, and the public images that the attacker has.

    Attributes:
        classifier: the network, frozen.
        num_classes: K; its labels are 0..K-1.
        public: float32 [M,C,H,W] in [-1, 1].
        public_logits: [M,K], the classifier's on the public images.
        public_features: [M,F] likewise, its penultimate features.
        evaluations: how many images have gone through the classifier or a diffusion model so far.
    """

    def __init__(self, classifier: TrainedClassifier, public: Tensor, seed: int, device: str = "cpu") -> None:
        """Run the classifier on the public images.

        Raises:
            AttackError: if there are no public images, they leave [-1, 1], or the classifier does not take them.
            ConfigError: if the classifier cannot be built.
        """
        _check_public(public)
        self.seed, self.device, self.evaluations = seed, device, 0
        self.classifier = self.counted(classifier.build().to(device))
        self.public = public.to(device)
        try:
            with torch.no_grad():
                parts = [classification.logits_and_features(self.classifier, batch) for batch in public.split(BATCH)]
        except RuntimeError as error:  # torch's, where channels or sides do not fit
            shape = list(public.shape[1:])
            raise AttackError(f"the classifier takes no images of shape {shape}: {message(error)}") from error
        self.public_logits, self.public_features = (torch.cat(part) for part in zip(*parts, strict=True))
        self.num_classes = self.public_logits.shape[1]
        self._made: dict[str, tuple[Any, int]] = {}

    def generator(self, purpose: str) -> torch.Generator:
        """A generator on the CPU for one purpose; its seed is SHA-256 of (seed, purpose)."""
        digest = hashlib.sha256(json.dumps([self.seed, purpose]).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def counted(self, network: nn.Module) -> nn.Module:
        """The same network; from now on the images that go through it are counted."""
        network.register_forward_hook(self._count)
        return network

    def once(self, key: str, make: Callable[[], T]) -> T:
        """``make()``, computed once for every ``key``; its evaluations count each time that it is asked for."""
        if key in self._made:
            made, cost = self._made[key]
            self.evaluations += cost
            return cast(T, made)
        before = self.evaluations
        made = make()
        self._made[key] = made, self.evaluations - before
        return made

    def _count(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Any) -> None:
        self.evaluations += len(inputs[0])


def _check_public(public: Tensor) -> None:
    if public.ndim != 4 or not len(public):
        raise AttackError(f"public images have shape {list(public.shape)}; allowed: [M,C,H,W] with M from 1")
    if not bool((public.abs() <= 1).all()):  # refuses NaN too
        least, largest = public.aminmax()
        raise AttackError(f"public images go from {least:.3g} to {largest:.3g}; allowed: -1 to 1")
