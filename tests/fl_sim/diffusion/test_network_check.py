from typing import Any

import pytest
import torch

from fl_sim import diffusion, network
from fl_sim.network import ConfigError
from tests.fl_sim.diffusion.toy import draw, scheduler, tiny_config


def four_levels() -> dict[str, Any]:
    return network.unet_config(28, block_out_channels=(8, 8, 8, 8), norm_num_groups=4)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"num_class_embeds": 0}, 16, "num_class_embeds = 0; allowed: the number of classes, from 1"),
        ({"num_class_embeds": True}, 16, "num_class_embeds = True; allowed"),
        ({"class_embed_type": "timestep"}, 16, r"class_embed_type = 'timestep', .*allowed: a table of labels"),
        ({"class_embed_type": "identity"}, 16, r"class_embed_type = 'identity', .*allowed: a table of labels"),
        ({"out_channels": 6}, 16, r"predicts a variance .*allowed: out_channels = 3"),
        ({"in_channels": 1, "out_channels": 1}, 16, r"1 channels and predicts 1, the images have 3"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 10}, 16, "knows 10 timesteps, .* has 1000"),
        ({"time_embedding_type": "none"}, 16, "cannot be built"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 2}, 16, "cannot be trained on images of shape"),
        ({"add_attention": True, "attention_head_dim": 99}, 16, "cannot be trained on images of shape"),
        (four_levels(), 28, r"28x28 pixels .* of 4 levels; allowed: sides that are multiples of 8"),
    ],
)
def test_a_network_that_cannot_be_trained_on_the_images_is_one_line(
    changes: dict[str, Any], size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        diffusion.check_network(tiny_config(**changes), diffusion.scheduler_config(), (3, size, size))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"time_embedding_type": "fourier"},
        {"time_embedding_type": "learned", "num_train_timesteps": 1000},
        {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"},
        {"down_block_types": ["SkipDownBlock2D"] * 2, "up_block_types": ["SkipUpBlock2D"] * 2},
        {"center_input_sample": True, "mid_block_type": None, "dropout": 0.5, "sample_size": None},
        {"add_attention": True, "act_fn": "gelu", "class_embed_type": None, "lora": {"rank": 1, "alpha": 1}},
    ],
)
def test_the_trial_lets_through_what_trains_and_draws_nothing(changes: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    diffusion.check_network(tiny_config(**changes), diffusion.scheduler_config(), (3, 16, 16))
    assert torch.equal(torch.get_rng_state(), before)
    model = network.build_model(tiny_config(**changes))
    assert diffusion.gradient(model, scheduler(), *(values[1:2] for values in draw()))


def test_a_table_of_class_labels_is_let_through():
    diffusion.check_network(tiny_config(num_class_embeds=10), diffusion.scheduler_config(), (3, 16, 16))
