import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from fl_sim.client_app import build_client_app
from fl_sim.config import SettingsError
from fl_sim.defences.registry import create
from fl_sim.network import trainable_names
from fl_sim.wire import ARRAYS, CONFIG, ROUND, Recipe, arrays_in, read_update
from tests.fl_sim.defences.stub import train_message
from tests.fl_sim.federations import node_context, tiny_recipe, tiny_settings, weights_recipe

MLP, PROJECTIONS = ("time_embedding.linear_1.weight",), ("mid_block.resnets.0.time_emb_proj.weight",)


def update_of(recipe: Recipe, *arguments: str) -> dict[str, Tensor]:
    settings = tiny_settings("defence.name=unshared-time-mlp", *arguments)
    message = train_message(recipe)
    sent = message.content.array_records[ARRAYS].to_torch_state_dict()
    return read_update(sent, arrays_in(build_client_app(settings)(message, node_context(1)).content), recipe)


def plain(recipe: Recipe) -> dict[str, Tensor]:
    return update_of(recipe, "defence.name=none")


def of_time(name: str) -> bool:
    return "time_" in name


@pytest.mark.parametrize(("parts", "left"), [("all", ()), ("mlp", PROJECTIONS), ("projections", MLP)])
def test_of_a_gradient_everything_is_sent_but_the_time_layers(parts: str, left: tuple[str, ...]) -> None:
    recipe = tiny_recipe()
    own, sent = plain(recipe), update_of(recipe, f"defence.args.parts={parts}")
    assert all(torch.equal(value, own[name]) for name, value in sent.items())
    assert {name for name in own if not of_time(name)} <= set(sent)
    assert {name for name in (*MLP, *PROJECTIONS) if name in sent} == set(left)
    assert (parts == "all") == (not any(map(of_time, sent)))


def test_frozen_layers_are_not_trained_between_local_steps_either() -> None:
    recipe = weights_recipe(3)
    sent = update_of(recipe)
    moved = {name for name, value in sent.items() if value.any()}
    assert moved == {name for name in trainable_names(recipe.model) if not of_time(name)}
    # The second step starts from time layers that the first did not move, and so arrives elsewhere.
    own = plain(recipe)
    assert not torch.equal(sent["conv_in.weight"], own["conv_in.weight"])


def rounds(context: Context, recipe: Recipe, count: int, defended: bool) -> list[dict[str, Tensor]]:
    """The states that a client returns if the server sends back what it got."""
    overrides = ("defence.name=unshared-time-mlp", "defence.args.keep=own") if defended else ()
    app = build_client_app(tiny_settings(*overrides))
    arrays, states = train_message(recipe).content.array_records[ARRAYS], []
    for number in range(1, count + 1):
        config = ConfigRecord({**recipe.to_config(), ROUND: number})
        message = Message(RecordDict({ARRAYS: arrays, CONFIG: config}), dst_node_id=5, message_type="train")
        message.metadata.__dict__["_message_id"] = str(number)
        arrays = app(message, context).content.array_records[ARRAYS]
        states.append(arrays.to_torch_state_dict())
    return states


def test_own_layers_are_trained_on_from_round_to_round_and_never_sent() -> None:
    recipe = weights_recipe(2)
    context = node_context(1)
    defended, open_ = rounds(context, recipe, 2, True), rounds(node_context(1), recipe, 2, False)
    start = train_message(recipe).content.array_records[ARRAYS].to_torch_state_dict()
    kept = context.state.array_records["own-time-mlp"].to_torch_state_dict()
    assert {name for name in start if of_time(name)} == set(kept)
    for name, value in start.items():
        if of_time(name):
            assert all(torch.equal(state[name], value) for state in defended)
            assert torch.equal(kept[name], open_[1][name])
        else:
            assert torch.equal(defended[1][name], open_[1][name])


def test_what_the_server_sent_is_left_as_it_was() -> None:
    recipe = weights_recipe(1)
    context, message = node_context(1), train_message(recipe)
    app = build_client_app(tiny_settings("defence.name=unshared-time-mlp", "defence.args.keep=own"))
    sent = message.content
    before = sent.array_records[ARRAYS].to_torch_state_dict()
    for _ in range(2):
        message.content = sent
        app(message, context)
    after = sent.array_records[ARRAYS].to_torch_state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_client_that_sends_gradients_has_no_layers_of_its_own() -> None:
    defence = create("unshared-time-mlp", {"keep": "own"})
    defence.check(weights_recipe())
    with pytest.raises(SettingsError, match=r"defence\.args\.keep = 'own': .*allowed: 'frozen', or client.update=wei"):
        defence.check(tiny_recipe())
