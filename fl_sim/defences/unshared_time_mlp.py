"""Clients keep the layers whose only input is the timestep: the gradients of these reveal it (docs/attacks/)."""

from typing import ClassVar, Literal

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from pydantic import Field
from torch import nn
from typing_extensions import override

from fl_sim import network
from fl_sim.config import SettingsError
from fl_sim.defences.defence import Defence, Update
from fl_sim.draws import Draw
from fl_sim.task import Task
from fl_sim.wire import ARRAYS, Recipe

_STATE = "own-time-mlp"


class UnsharedTimeMLP(Defence):
    """The time embedding's MLP and the blocks' time projections are not trained, or stay with their client."""

    name: ClassVar[str] = "unshared-time-mlp"

    parts: Literal["all", "mlp", "projections"] = Field(
        "all", description="which: the MLP (and a learned embedding table), the projections of the blocks, or both"
    )
    keep: Literal["frozen", "own"] = Field(
        "frozen", description='"frozen": nobody trains them; "own": each client trains its own and sends them to nobody'
    )

    def withholds(self, parameter: str) -> bool:
        """Whether the parameter of this name is kept out of the update."""
        mlp = parameter.startswith(("time_embedding.", "time_proj."))
        projection = ".time_emb_proj." in parameter
        return (mlp and self.parts != "projections") or (projection and self.parts != "mlp")

    @override
    def check(self, recipe: Recipe) -> None:
        if not any(self.withholds(name) for name in recipe.trained_names()):
            if network.FACTORY in recipe.model:
                raise SettingsError(
                    f"defence.name = {self.name!r}: the network of {recipe.model[network.FACTORY]!r} has no layers "
                    "called time_embedding, time_proj or time_emb_proj, as diffusers calls them; allowed: another "
                    "defence, or client.trainable without its time layers"
                )
            raise SettingsError(
                f"defence.name = {self.name!r}: clients train none of these layers (client.trainable = "
                f"{list(recipe.trainable)}), so that nothing is withheld"
            )
        if self.keep == "own" and recipe.update == "gradient":
            raise SettingsError(
                "defence.args.keep = 'own': a client that sends its gradient trains nothing of its own; "
                "allowed: 'frozen', or client.update=weights"
            )

    @override
    def batch_gradient(
        self,
        model: nn.Module,
        task: Task,
        batch: Draw,
        generator: torch.Generator,
    ) -> tuple[Update, float]:
        gradient, loss = super().batch_gradient(model, task, batch, generator)
        if self.keep == "own":
            return gradient, loss
        return {name: value for name, value in gradient.items() if not self.withholds(name)}, loss

    @override
    def mod(self, private_seed: int) -> Mod:
        return self._with_own_layers if self.keep == "own" else super().mod(private_seed)

    def _with_own_layers(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Train with the client's own layers, store them as trained, and reply with those that the server sent."""
        sent = message.content.array_records[ARRAYS]
        own = context.state.array_records.get(_STATE, ArrayRecord())
        message.content = RecordDict({**message.content, ARRAYS: ArrayRecord({**sent, **own})})
        reply = call_next(message, context)
        trained = reply.content.array_records[ARRAYS]
        withheld = [name for name in trained if self.withholds(name)]
        context.state[_STATE] = ArrayRecord({name: trained[name] for name in withheld})
        for name in withheld:
            trained[name] = sent[name]
        return reply
