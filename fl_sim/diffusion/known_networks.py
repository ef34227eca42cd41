"""Networks that go by a name: ``model.config`` in the settings, or a file of the same form, as diffusers saves it."""

from typing import Any

from fl_sim.network.unet import unet_config

KNOWN_NETWORKS: dict[str, dict[str, Any]] = {
    "small": unet_config(16),
    "three-levels": unet_config(32, block_out_channels=(64, 128, 128)),
    "ddpm-cifar10": {
        "_class_name": "UNet2DModel",
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [128, 256, 256, 256],
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "downsample_padding": 0,
        "act_fn": "silu",
        "attention_head_dim": None,
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
    },
    "paper": unet_config(64, block_out_channels=(64, 128, 256, 512), layers_per_block=2),
}
"""By name: the demo's network, one of three levels, that of google/ddpm-cifar10-32 on the hub (channels 128, 256, 256,
256, attention at the second level), and one with the channels of arXiv 2405.20380 (64, 128, 256, 512)."""
