"""The interface of every defence.

Adding one: subclass Defence (or UpdateDefence) in a file of its own, give it a ``name`` and override what it changes,
and register it, with an entry point of group ``fl_sim.defences`` from another package, or in registry.py.
"""

# ruff: noqa: ARG002 (the base class needs nothing of what its subclasses are given)

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from typing_extensions import override

from fl_sim import diffusion
from fl_sim.defences.privacy import Privacy
from fl_sim.draws import derive_seed, generator
from fl_sim.wire import ARRAYS, CLIENT, CONFIG, PARTITION, ROUND, Recipe, arrays_in, read_update, replace_update

Update = dict[str, Tensor]


class Defence(BaseModel):
    """What a client does to tell less; as it stands, nothing.

    The fields of a subclass are its arguments, validated when it is made. ``sum_only``: the server sees the sum of the
    round's updates, and none of them by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    sum_only: ClassVar[bool] = False

    def check(self, recipe: Recipe) -> None:
        """Raise SettingsError if this defence does not go with how clients train."""

    def mod(self, private_seed: int) -> Mod:
        """What is wrapped around a client's training; all randomness derives from ``private_seed``."""
        return _pass_on

    def batch_gradient(
        self,
        model: nn.Module,
        scheduler: DDPMScheduler,
        images: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        source: torch.Generator,
    ) -> tuple[Update, float]:
        """The gradient that a client trains with or sends, by parameter, and the loss of a batch.

        Parameters that are left out are not trained. All randomness comes from ``source``, on the CPU.
        """
        return diffusion.gradient_and_loss(model, scheduler, images, noise, timesteps)

    def disclosure(self, recipe: Recipe) -> dict[str, Any]:
        """What an attacker who knows this defence is told: the ``defence`` of a capture (docs/capture-format.md)."""
        return {}

    def privacy(self, recipe: Recipe, images: int, rounds: int) -> Privacy | None:
        """What a client with so many ``images`` has spent after taking part in ``rounds``; None: nothing is proven."""
        return None


class NoDefence(Defence):
    """Clients send what they computed."""

    name: ClassVar[str] = "none"


class UpdateDefence(Defence, ABC):
    """A defence that replaces the update: the gradient, or the weights after local training minus those before."""

    @abstractmethod
    def protect(self, update: Update, source: torch.Generator) -> Update:
        """What is sent in place of ``update``, float32 by parameter; all randomness comes from ``source``."""

    @override
    def mod(self, private_seed: int) -> Mod:
        """A mod that lets the client train and then protects the update in its reply."""

        def protect_reply(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            reply = call_next(message, context)
            config = message.content.config_records[CONFIG]
            client = reply.content.config_records[CLIENT][PARTITION]
            source = private_source(private_seed, int(str(client)), int(str(config[ROUND])))
            recipe = Recipe.from_config(config)
            sent = message.content.array_records[ARRAYS].to_torch_state_dict()
            update = self.protect(read_update(sent, arrays_in(reply.content), recipe), source)
            replace_update(sent, reply, update, recipe)
            return reply

        return protect_reply


def private_source(private_seed: int, client: int, server_round: int, *purpose: str) -> torch.Generator:
    """A client's own randomness for its defence in a round, which nobody without its private seed can repeat."""
    return generator(derive_seed(private_seed, "defence", client, server_round, *purpose))


def _pass_on(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    return call_next(message, context)
