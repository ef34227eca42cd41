from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from fl_sim import diffusion
from fl_sim.diffusion import ConfigError, LocalOptimizer

PREDICTION_TYPES = diffusion.PREDICTION_TYPES


def tiny_config(**changes: Any) -> dict[str, Any]:
    return diffusion.unet_config(16, block_out_channels=(8, 16), norm_num_groups=4) | changes


def draw(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    x0 = torch.rand(batch, 3, 16, 16, generator=source) * 2 - 1
    return x0, torch.randn(x0.shape, generator=source), torch.tensor([0, 400, 999])[:batch]


def scheduler(prediction_type: str = "epsilon") -> DDPMScheduler:
    return diffusion.build_scheduler(diffusion.scheduler_config(prediction_type=prediction_type))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return diffusion.build_model(tiny_config())


def test_noising_is_diffusers_own() -> None:
    x0, noise, timesteps = draw()
    torch.testing.assert_close(
        diffusion.add_noise(scheduler(), x0, noise, timesteps), scheduler().add_noise(x0, noise, timesteps)
    )


def test_the_velocity_target_is_diffusers_own_and_the_others_are_what_their_names_say() -> None:
    x0, noise, timesteps = draw()
    velocity = diffusion.target(scheduler("v_prediction"), x0, noise, timesteps)
    torch.testing.assert_close(velocity, scheduler().get_velocity(x0, noise, timesteps))
    assert diffusion.target(scheduler("epsilon"), x0, noise, timesteps) is noise
    assert diffusion.target(scheduler("sample"), x0, noise, timesteps) is x0


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_residual_gives_the_image_back(prediction_type: str) -> None:
    ddpm, (x0, noise, timesteps) = scheduler(prediction_type), [value.double() for value in draw()]
    timesteps = timesteps.long()
    x_t = diffusion.add_noise(ddpm, x0, noise, timesteps)
    prediction = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    residual = prediction - diffusion.target(ddpm, x0, noise, timesteps)
    found = diffusion.x0_from_residual(ddpm, x_t, prediction, residual, timesteps)
    torch.testing.assert_close(found, x0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_and_gradient_agree_with_a_plain_backward(model: nn.Module, prediction_type: str) -> None:
    ddpm, (x0, noise, timesteps) = scheduler(prediction_type), draw()
    x_t = ddpm.add_noise(x0, noise, timesteps)
    target = {"epsilon": noise, "sample": x0, "v_prediction": ddpm.get_velocity(x0, noise, timesteps)}[prediction_type]
    expected = (model(x_t, timesteps).sample - target).square().mean()
    torch.testing.assert_close(diffusion.loss(model, ddpm, x0, noise, timesteps), expected)
    gradient = diffusion.gradient(model, ddpm, x0, noise, timesteps)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.zero_grad()
    expected.backward()
    torch.testing.assert_close(gradient, {name: p.grad for name, p in model.named_parameters()})
    model.zero_grad()


def test_the_default_network_is_as_large_as_the_demo_promises() -> None:
    network = diffusion.build_model(diffusion.unet_config(16))
    assert diffusion.count_parameters(network.parameters()) >= 500_000


@pytest.mark.parametrize("attention", [False, True])
def test_networks_are_built_with_and_without_attention(attention: bool) -> None:
    network = diffusion.build_model(diffusion.unet_config(16, 1, (8, 16), norm_num_groups=4, attention=attention))
    assert diffusion.predict(network, torch.zeros(2, 1, 16, 16), torch.tensor([1, 2])).shape == (2, 1, 16, 16)
    assert any("attentions" in name for name, _ in network.named_parameters()) is attention


def test_frozen_parameters_have_no_gradient() -> None:
    network = diffusion.build_model(tiny_config())
    network.conv_in.weight.requires_grad_(False)
    gradient = diffusion.gradient(network, scheduler(), *draw())
    assert "conv_in.weight" not in gradient
    assert "conv_in.bias" in gradient


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
        diffusion.build_model(tiny_config(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "'DDIMScheduler' is not allowed"),
        ({"prediction_type": "score"}, "'score' is unknown"),
        ({"beta_schedule": "no-such-schedule"}, "cannot be built"),
        ({"no_such_key": 1}, "unknown keys: no_such_key"),
    ],
)
def test_a_schedule_that_cannot_be_built_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        diffusion.build_scheduler(diffusion.scheduler_config() | changes)


def test_private_keys_of_a_configuration_are_ignored() -> None:
    diffusion.build_scheduler(diffusion.scheduler_config() | {"_diffusers_version": "0.0.0"})
    diffusion.build_model(tiny_config(_name_or_path="/somewhere"))


def test_local_optimisers_are_torchs() -> None:
    parameters = [nn.Parameter(torch.zeros(1))]
    sgd = LocalOptimizer(lr=0.5, momentum=0.9, weight_decay=0.1).build(parameters)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.5, 0.9, 0.1)
    adam = LocalOptimizer(name="adam", lr=0.5, betas=(0.8, 0.9), eps=1e-3).build(parameters)
    assert isinstance(adam, torch.optim.Adam)
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.8, 0.9), 1e-3)


def test_alphas_cumprod_are_linear_between_integer_timesteps() -> None:
    like, integers = torch.zeros(1, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 400, 998, 999])

    def signal_power(timesteps: Tensor) -> Tensor:
        return diffusion.signal_and_noise_scale(scheduler(), timesteps, like)[0].square().flatten()

    torch.testing.assert_close(signal_power(integers.double()), signal_power(integers))
    between = torch.tensor([400.25], dtype=torch.float64, requires_grad=True)
    below, above = signal_power(torch.tensor([400, 401]))
    torch.testing.assert_close(signal_power(between)[0], 0.75 * below + 0.25 * above)
    (slope,) = torch.autograd.grad(signal_power(between).sum(), between)
    torch.testing.assert_close(slope[0], above - below)


def test_adapters_change_nothing_before_they_are_trained_and_are_all_that_is_trained() -> None:
    config = diffusion.unet_config(8, block_out_channels=(8, 8), norm_num_groups=4)
    plain = diffusion.build_model(config)
    x_t, timesteps = torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
    before = diffusion.predict(plain, x_t, timesteps)
    adapted = diffusion.adapt(plain, diffusion.LoRA(rank=2, alpha=4, targets=("conv_in", "*.conv1")))
    assert torch.equal(diffusion.predict(adapted, x_t, timesteps), before)
    names = list(diffusion.trainable_parameters(adapted))
    assert len(names) == 2 * (
        1 + len([name for name in plain.state_dict() if name.endswith("conv1.base_layer.weight")])
    )
    assert all(".lora_" in name and ("conv_in." in name or ".conv1." in name) for name in names)
    rebuilt = diffusion.build_model({**config, "lora": {"rank": 2, "alpha": 4, "targets": ["conv_in", "*.conv1"]}})
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
    config = diffusion.unet_config(8, block_out_channels=(8, 8), norm_num_groups=4)
    with pytest.raises(diffusion.ConfigError, match=message) as caught:
        diffusion.build_model({**config, "lora": lora})
    assert "\n" not in str(caught.value)


def four_levels() -> dict[str, Any]:
    return diffusion.unet_config(28, block_out_channels=(8, 8, 8, 8), norm_num_groups=4)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"num_class_embeds": 10}, 16, r"takes class labels \(num_class_embeds = 10\)"),
        ({"class_embed_type": "timestep"}, 16, r"takes class labels \(class_embed_type = 'timestep'\)"),
        ({"class_embed_type": "identity"}, 16, r"takes class labels \(class_embed_type = 'identity'\)"),
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
    network = diffusion.build_model(tiny_config(**changes))
    assert diffusion.gradient(network, scheduler(), *(values[1:2] for values in draw()))


@pytest.mark.parametrize(("given", "side"), [(16, 16), ([16, 16], 16), ((8, 8), 8), (None, None)])
def test_the_size_of_a_network_is_the_side_of_a_square(given: Any, side: int | None) -> None:
    assert diffusion.sample_size(tiny_config(sample_size=given)) == side


@pytest.mark.parametrize("given", [[16, 32], "16", 0, True, [16], [16, 16, 3], 16.0])
def test_what_is_no_square_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"model.sample_size = .*allowed: the side of a square"):
        diffusion.sample_size(tiny_config(sample_size=given))


SCHEDULES = [
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"num_train_timesteps": 3, "trained_betas": [0.1, 0.2, 0.5]},
    {"num_train_timesteps": 1},
    {"num_train_timesteps": 2, "rescale_betas_zero_snr": True},
    {"num_train_timesteps": 10, "rescale_betas_zero_snr": True},
    {"rescale_betas_zero_snr": True},
]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("changes", SCHEDULES, ids=str)
def test_every_schedule_gives_the_image_back_where_there_is_one(changes: dict[str, Any], prediction_type: str) -> None:
    ddpm = diffusion.build_scheduler(diffusion.scheduler_config(prediction_type=prediction_type) | changes)
    last = len(ddpm.betas) - 1
    timesteps = torch.tensor([0, last // 2, last])
    x0, noise, _ = (value.double() for value in draw())
    x_t, known = (f(ddpm, x0, noise, timesteps) for f in (diffusion.add_noise, diffusion.target))
    found = diffusion.x0_from_residual(ddpm, x_t, known, torch.zeros_like(x0), timesteps)
    told = diffusion.determines_x0(ddpm, timesteps)
    hidden = prediction_type == "epsilon" and changes.get("rescale_betas_zero_snr", False)
    assert told.tolist() == [True, True, not hidden]
    torch.testing.assert_close(found[told], x0[told])
    assert not found[~told].any()
    sampler = diffusion.ddim_sampler(ddpm, 10, clip=False)
    assert bool(diffusion.determines_x0(ddpm, sampler.timesteps).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_betas": [0.1, 0.2]}, r"has 2 betas for num_train_timesteps = 1000"),
        ({"beta_end": 1.5}, r"betas go from 0.0001 to 1.5; allowed: 0 to 1"),
        ({"beta_start": -0.1}, r"betas go from -0.1 to 0.02; allowed: 0 to 1"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, r"betas go from nan to nan"),
        ({"num_train_timesteps": 0}, "scheduler"),
        ({"num_train_timesteps": "many"}, "scheduler"),
    ],
)
def test_what_is_no_noise_schedule_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        diffusion.build_scheduler(diffusion.scheduler_config() | changes)
    assert "\n" not in str(caught.value)


def test_a_configuration_without_a_number_of_timesteps_has_diffusers_own() -> None:
    assert diffusion.num_train_timesteps({}) == 1000
    assert diffusion.num_train_timesteps({"num_train_timesteps": 7}) == 7


@pytest.mark.parametrize(("dropout", "share"), [(0.3, 0.3), (None, 0.0), (0, 0.0)])
def test_the_dropout_of_a_network_is_told(dropout: float | None, share: float) -> None:
    assert diffusion.dropout_of(tiny_config(dropout=dropout)) == share
    assert diffusion.dropout_of(tiny_config()) == 0.0
