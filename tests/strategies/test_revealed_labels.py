"""Labels reach the observation in the known threat model alone, whatever a reply holds."""

from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from attacks.observation import CaptureError, Observation, UpdateId
from fl_sim import network
from fl_sim.wire import CLIENT, LABELS, Recipe, pack_reply
from strategies.honest_but_curious import View, make_observation
from tests.fl_sim.federations import initial_arrays, tiny_recipe


def conditional(noise_seed: int | None) -> Recipe:
    recipe = tiny_recipe(batch_size=2, noise_seed=noise_seed)
    return recipe.model_copy(update={"model": recipe.model | {"num_class_embeds": 5}})


def observed(noise_seed: int | None, *revealed: Any) -> Observation:
    """The observation of the sum of clients of which each says so of its labels."""
    recipe = conditional(noise_seed)
    weights = initial_arrays(recipe).to_torch_state_dict()
    update = {name: weights[name] for name in network.trainable_names(recipe.model)}
    views = []
    for client, said in enumerate(revealed):
        reply = pack_reply(update, 2, 0.5, client, "cpu")
        stated = dict(reply.config_records[CLIENT]) | ({} if said is None else {LABELS: said})
        content = RecordDict({**reply, CLIENT: ConfigRecord(stated)})
        views.append(View.of(UpdateId(1, client), lambda: weights, content))
    update_id = UpdateId(1, 0 if len(views) == 1 else -1)
    return make_observation(recipe, update_id, views, None)


def test_known_labels_come_client_after_client() -> None:
    labels = observed(3, [4, 0], [1, 2]).labels
    assert labels is not None
    assert torch.equal(labels, torch.tensor([4, 0, 1, 2]))


def test_a_client_that_reveals_private_labels_is_not_listened_to() -> None:
    assert observed(None, [4, 0]).labels is None


@pytest.mark.parametrize("revealed", [None, [4], [4, 0, 1], [4, 5], "4, 0", ["4", "0"], 4])
def test_labels_that_are_missing_or_wrong_are_one_line(revealed: Any) -> None:
    with pytest.raises(CaptureError, match="labels must"):
        observed(3, revealed)
