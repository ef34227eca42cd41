from typing import Any

import pytest
import torch

from fl_sim import diffusion, network


def test_adapters_change_nothing_before_they_are_trained_and_are_all_that_is_trained() -> None:
    config = network.unet_config(8, block_out_channels=(8, 8), norm_num_groups=4)
    plain = network.build_model(config)
    x_t, timesteps = torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
    before = diffusion.predict(plain, x_t, timesteps)
    adapted = network.adapt(plain, network.LoRA(rank=2, alpha=4, targets=("conv_in", "*.conv1")))
    assert torch.equal(diffusion.predict(adapted, x_t, timesteps), before)
    names = list(network.trainable_parameters(adapted))
    assert len(names) == 2 * (
        1 + len([name for name in plain.state_dict() if name.endswith("conv1.base_layer.weight")])
    )
    assert all(".lora_" in name and ("conv_in." in name or ".conv1." in name) for name in names)
    rebuilt = network.build_model({**config, "lora": {"rank": 2, "alpha": 4, "targets": ["conv_in", "*.conv1"]}})
    rebuilt.load_state_dict(adapted.state_dict())
    with torch.no_grad():
        adapted.get_parameter("conv_in.lora_B.default.weight").fill_(0.1)
    rebuilt.load_state_dict(adapted.state_dict())
    assert torch.equal(diffusion.predict(rebuilt, x_t, timesteps), diffusion.predict(adapted, x_t, timesteps))
    assert not torch.equal(diffusion.predict(rebuilt, x_t, timesteps), before)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0, "alpha": 1}, "model.lora.rank = 0"),
        ({"rank": 1, "alpha": 1, "dropout": 0.5}, "model.lora.dropout"),
        ({"rank": 1, "alpha": 1, "targets": ["attention"]}, "match no layer; layers: conv_in"),
        (7, "model.lora = 7"),
    ],
)
def test_adapters_that_cannot_be_are_one_line(lora: Any, message: str) -> None:
    config = network.unet_config(8, block_out_channels=(8, 8), norm_num_groups=4)
    with pytest.raises(network.ConfigError, match=message) as caught:
        network.build_model({**config, "lora": lora})
    assert "\n" not in str(caught.value)
