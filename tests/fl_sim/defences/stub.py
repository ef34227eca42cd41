"""What leaves a client under a defence, without training: the client's own update is made up."""

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from fl_sim.defences.defence import Defence
from fl_sim.defences.registry import create
from fl_sim.wire import ARRAYS, CONFIG, ROUND, Recipe, arrays_in, pack_reply, read_update
from tests.fl_sim.federations import initial_arrays, node_context, tiny_recipe, weights_recipe

RECIPES = {"gradient": tiny_recipe(), "weights": weights_recipe(1)}
PRIVATE_SEED = 11


def own_update(recipe: Recipe, scale: float = 0.01) -> dict[str, Tensor]:
    """The update that the client would send without a defence; tensors differ in size, as gradients do."""
    generator = torch.Generator().manual_seed(3)
    message = train_message(recipe)
    sent = message.content.array_records[ARRAYS].to_torch_state_dict()
    names = read_update(sent, arrays_in(pack_reply(sent, 1, 0.5, 0, "cpu")), recipe)
    return {
        name: scale * (1 + index % 5) * torch.randn(value.shape, generator=generator)
        for index, (name, value) in enumerate(names.items())
    }


def train_message(recipe: Recipe, server_round: int = 1) -> Message:
    config = ConfigRecord({**recipe.to_config(), ROUND: server_round})
    message = Message(RecordDict({ARRAYS: initial_arrays(recipe), CONFIG: config}), dst_node_id=5, message_type="train")
    message.metadata.__dict__["_message_id"] = "1"
    return message


def sent_update(
    defence: Defence | str,
    recipe: Recipe,
    update: dict[str, Tensor] | None = None,
    *,
    client: int = 0,
    server_round: int = 1,
    private_seed: int = PRIVATE_SEED,
    **arguments: object,
) -> dict[str, Tensor]:
    """The update in the reply of a client that computed ``update`` (``own_update`` unless given)."""
    chosen = create(defence, arguments) if isinstance(defence, str) else defence
    computed = own_update(recipe) if update is None else update
    message = train_message(recipe, server_round)
    weights = message.content.array_records[ARRAYS].to_torch_state_dict()

    def train(message: Message, context: Context) -> Message:
        arrays = computed
        if recipe.update == "weights":
            arrays = {name: value + computed[name] for name, value in weights.items()}
        return Message(pack_reply(arrays, 1, 0.5, client, "cpu"), reply_to=message)

    reply = chosen.mod(private_seed)(message, node_context(client), train)
    return read_update(weights, arrays_in(reply.content), recipe)


def flat(update: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in update.values()])
