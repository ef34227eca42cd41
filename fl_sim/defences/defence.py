"""The interface of every defence.

To add one, subclass Defence (or UpdateDefence) in a file of its own, give it a ``name``, and override the methods that
it changes. Then register it in registry.py or, from another package, as an entry point of group ``fl_sim.defences``.
"""

# ruff: noqa: ARG002 (the base class needs nothing of what its subclasses are given)

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor, nn
from typing_extensions import override

from fl_sim.bounds import check_numbers
from fl_sim.defences.privacy import Privacy
from fl_sim.draws import Draw, derive_seed, seeded_generator
from fl_sim.task import Task
from fl_sim.wire import ARRAYS, CLIENT, CONFIG, PARTITION, ROUND, Recipe, arrays_in, read_update, replace_update

Update = dict[str, Tensor]


class Defence(BaseModel):
    """A client-side defence. This base class changes nothing; a subclass overrides what it changes.

    The fields of a subclass are its arguments, validated when it is made. ``sum_only``: the server sees only the sum of
    a round's updates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    _check_numbers = field_validator("*")(check_numbers)

    name: ClassVar[str]
    sum_only: ClassVar[bool] = False

    def check(self, recipe: Recipe) -> None:
        """Raise SettingsError if this defence cannot be used with how clients train."""

    def mod(self, private_seed: int) -> Mod:
        """The Flower mod around a client's training; all its randomness derives from ``private_seed``."""
        return _pass_on

    def batch_gradient(
        self,
        model: nn.Module,
        task: Task,
        batch: Draw,
        generator: torch.Generator,
    ) -> tuple[Update, float]:
        """The gradient of a batch that a client trains with or sends, by parameter, and the batch's loss.

        ``task`` is what the model is trained for. Parameters that are left out are not trained. All randomness comes
        from ``generator``, a CPU generator.
        """
        return task.gradient_and_loss(model, batch.images, *batch[1:])

    def disclosure(self, recipe: Recipe) -> dict[str, Any]:
        """What is known to an attacker who knows this defence: a capture's ``defence`` (docs/capture-format.md)."""
        return {}

    def privacy(self, recipe: Recipe, images: int, rounds: int) -> Privacy | None:
        """The privacy of a client with ``images`` images after ``rounds`` rounds; None if nothing is proven."""
        return None


class NoDefence(Defence):
    """Clients send what they computed."""

    name: ClassVar[str] = "none"


class UpdateDefence(Defence, ABC):
    """A defence that replaces the update: the gradient, or the weights after local training minus those before."""

    @abstractmethod
    def protect(self, update: Update, generator: torch.Generator) -> Update:
        """The update that is sent instead, float32 by parameter; all randomness comes from ``generator``."""

    @override
    def mod(self, private_seed: int) -> Mod:
        """A mod that lets the client train and then protects the update in its reply."""

        def protect_reply(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            reply = call_next(message, context)
            config = message.content.config_records[CONFIG]
            client = reply.content.config_records[CLIENT][PARTITION]
            generator = private_generator(private_seed, int(str(client)), int(str(config[ROUND])))
            recipe = Recipe.from_config(config)
            sent = message.content.array_records[ARRAYS].to_torch_state_dict()
            update = self.protect(read_update(sent, arrays_in(reply.content), recipe), generator)
            replace_update(sent, reply, update, recipe)
            return reply

        return protect_reply


def private_generator(private_seed: int, client: int, server_round: int, *purpose: str) -> torch.Generator:
    """The generator of a client's defence in a round; without the private seed nobody can repeat its draws."""
    return seeded_generator(derive_seed(private_seed, "defence", client, server_round, *purpose))


def _pass_on(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    return call_next(message, context)
