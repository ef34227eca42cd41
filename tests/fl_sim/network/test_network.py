from typing import Any

import pytest
import torch

from fl_sim import diffusion, network
from fl_sim.network import ConfigError
from fl_sim.network.network import image_shape
from tests.fl_sim.diffusion.toy import tiny_config


def test_the_default_network_is_as_large_as_the_demo_promises() -> None:
    model = network.build_model(network.unet_config(16))
    assert network.count_parameters(model.parameters()) >= 500_000


@pytest.mark.parametrize("attention", [False, True])
def test_networks_are_built_with_and_without_attention(attention: bool) -> None:
    model = network.build_model(network.unet_config(16, 1, (8, 16), norm_num_groups=4, attention=attention))
    assert diffusion.predict(model, torch.zeros(2, 1, 16, 16), torch.tensor([1, 2])).shape == (2, 1, 16, 16)
    assert any("attentions" in name for name, _ in model.named_parameters()) is attention


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "'StableDiffusionPipeline' is not allowed"),
        ({"_class_name": None}, "None is not allowed"),
        ({"norm_num_groups": 5}, "cannot be built"),
        ({"down_block_types": ["NoSuchBlock"]}, "cannot be built"),
        ({"no_such_key": 1}, "unknown keys: no_such_key"),
    ],
)
def test_a_network_that_cannot_be_built_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        network.build_model(tiny_config(**changes))
    assert "\n" not in str(caught.value)


def test_private_keys_of_a_configuration_are_ignored() -> None:
    diffusion.build_scheduler(diffusion.scheduler_config() | {"_diffusers_version": "0.0.0"})
    network.build_model(tiny_config(_name_or_path="/somewhere"))


@pytest.mark.parametrize(
    ("given", "shape"), [(16, (3, 16, 16)), ([16, 16], (3, 16, 16)), ((8, 24), (3, 8, 24)), (None, None)]
)
def test_the_size_of_a_network_is_a_side_or_a_pair(given: Any, shape: tuple[int, int, int] | None) -> None:
    assert image_shape(tiny_config(sample_size=given)) == shape
    grey = network.unet_config(given, channels=1) if given else tiny_config(sample_size=None, in_channels=1)
    assert image_shape(grey) == (None if shape is None else (1, *shape[1:]))


@pytest.mark.parametrize("given", ["16", 0, True, [16], [16, 16, 3], 16.0, [16, 0]])
def test_what_is_no_size_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"model.sample_size = .*allowed: the side of a square.*height, width"):
        image_shape(tiny_config(sample_size=given))


@pytest.mark.parametrize(("dropout", "share"), [(0.3, 0.3), (None, 0.0), (0, 0.0)])
def test_the_dropout_of_a_network_is_told(dropout: float | None, share: float) -> None:
    assert network.dropout_of(tiny_config(dropout=dropout)) == share
    assert network.dropout_of(tiny_config()) == 0.0
